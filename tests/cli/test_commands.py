"""Every command as a program, against a real API."""

import json
import re

from tests.cli.conftest import Longyard


def test_submit_jobs_show_pause_resume_cancel_retry(longyard: Longyard) -> None:
    done = longyard("submit", "--preset", "demo", "--name", "first", *longyard.files, "-s", "labels.team=nlp")
    assert done.returncode == 0, done.stderr
    job_id = done.stdout.split()[0]
    assert re.search(rf"{job_id} +first +queued", longyard("jobs").stdout)
    assert json.loads(longyard("jobs", "--label", "team=nlp", "--json").stdout)["data"][0]["id"] == job_id
    shown = longyard("show", job_id)
    assert re.search(r"^status +queued$", shown.stdout, re.MULTILINE)
    assert re.search(r"^label team +nlp$", shown.stdout, re.MULTILINE)
    train = json.loads(longyard("show", job_id, "--json").stdout)["train"]
    assert train["train_file"] == str(longyard.inputs / "train.txt")
    for verb, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled"), ("retry", "queued")):
        asked = longyard(verb, job_id)
        assert asked.returncode == 0, asked.stderr
        assert json.loads(longyard("show", job_id, "--json").stdout)["status"] == status
    assert longyard("events", job_id).stdout.count("\n") >= 2


def test_a_dry_run_queues_nothing(longyard: Longyard) -> None:
    before = longyard("jobs", "--json").stdout
    done = longyard("submit", "--preset", "demo", *longyard.files, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["spec"]["preset"] == "demo"
    shown = longyard("submit", "--preset", "demo", *longyard.files, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"^would wait +needs 2 free cpu devices", shown.stdout, re.MULTILINE)
    assert re.search(rf"^steps +{answer['estimate']['steps']['value']}$", shown.stdout, re.MULTILINE)
    assert re.search(r"^memory a device +about [\d.]+ MiB$", shown.stdout, re.MULTILINE)
    assert longyard("jobs", "--json").stdout == before


def test_the_same_key_submits_once(longyard: Longyard) -> None:
    assert longyard.submit("--idempotency-key", "k1") == longyard.submit("--idempotency-key", "k1")


def test_a_refusal_names_fields_and_the_way_out(longyard: Longyard) -> None:
    done = longyard("submit", "--preset", "demo", *longyard.files, "-s", "num_devices=9", "-s", "learning_rat=1")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "learning_rat" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_such_job(longyard: Longyard) -> None:
    done = longyard("show", "01930000-0000-7000-8000-000000000000")
    assert done.returncode == 2
    assert "404" in done.stderr
    assert longyard("show", "../hosts").returncode == 2


def test_a_wrong_token_and_a_plane_that_is_away(longyard: Longyard) -> None:
    wrong = longyard("jobs", environment={"LONGYARD_TOKEN": "x" * 43})
    assert wrong.returncode == 3
    assert "token" in wrong.stderr
    away = longyard("jobs", environment={"LONGYARD_URL": "http://127.0.0.1:9", "LONGYARD_TOKEN": "x"})
    assert away.returncode == 3
    assert "does not answer" in away.stderr


def test_hosts_presets_metrics_and_logs_of_a_job_that_waits(longyard: Longyard) -> None:
    assert "train_full_8p" in longyard("presets").stdout
    assert longyard("hosts").returncode == 0
    job_id = longyard.submit()
    assert longyard("metrics", job_id).returncode == 0
    assert "no log yet" in longyard("logs", job_id).stderr
    assert longyard("metrics", job_id, "--csv").stdout.startswith("name,attempt,step,value,at")


def test_login_and_token(longyard: Longyard) -> None:
    link = longyard("login").stdout.strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/ui/login#\S+", link)
    assert longyard("token").stdout.strip() == longyard.token_file.read_text().strip()


def test_a_name_cannot_write_to_the_terminal(longyard: Longyard) -> None:
    """Whether the API refuses such a name or keeps it, no control byte comes back through the table."""
    hostile = "x\u202egnp.exe [red]bold[/red]"
    done = longyard("submit", "--preset", "demo", "--name", hostile, *longyard.files)
    assert "\u202e" not in longyard("jobs").stdout + done.stderr
    if done.returncode == 0:
        assert "[red]bold[/red]" in longyard("jobs").stdout
