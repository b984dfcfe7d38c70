"""What is looked at before a launch: the notes of the last round, and what has changed since."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from linux import proc
from store import hosts
from store.db import Database
from store.settings import Settings
from store.states import ExitReason, JobStatus
from tests.worker.conftest import TOKENIZER
from worker.agent.checkup import Checkup
from worker.devices.inventory import Inventory
from worker.doctor import preflight, runner
from worker.doctor.findings import Finding, Level
from worker.doctor.preflight import Notes

if TYPE_CHECKING:
    from tests.worker.conftest import Plane

DOOM = Finding(
    "versions", Level.FAILURE, "torch is not installed", "no rank can start", "pip install torch", dooms_jobs=True
)
BASE = {
    "model_type": "longformer",
    "vocab_size": 50265,
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 4098,
    "attention_window": 512,
    "type_vocab_size": 1,
    "hidden_act": "gelu",
}
CPU = Inventory("cpu", ("slot", "slot"), {})


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    settings = Settings(data_dir=tmp_path / "data", data_roots=(tmp_path / "inputs",), host_name="here")
    settings.host_dir.mkdir(parents=True)
    (tmp_path / "inputs" / "tokenizer").mkdir(parents=True)
    (tmp_path / "inputs" / "tokenizer" / "tokenizer.json").write_text(TOKENIZER)
    (tmp_path / "inputs" / "a.txt").write_text("text")
    return settings


def _spec(here: Settings, **changes: str) -> dict[str, Any]:
    (root,) = here.data_roots
    return {"train_file": f"{root}/a.txt", "tokenizer_name": f"{root}/tokenizer", "do_eval": False} | changes


def test_nothing_is_refused_where_nothing_is_wrong(here: Settings) -> None:
    assert preflight.refusal(here, _spec(here), devices=[0]) is None
    preflight.leave(here, Notes([replace(DOOM, level=Level.WARNING, dooms_jobs=False)]))
    assert preflight.refusal(here, _spec(here), devices=[0]) is None


def test_a_finding_that_dooms_the_job_refuses_it_in_its_words(here: Settings) -> None:
    preflight.leave(here, Notes([DOOM]))
    assert preflight.refusal(here, _spec(here), devices=[0]) == (
        ExitReason.LAUNCH_ERROR,
        "host here cannot run it: torch is not installed; pip install torch",
    )
    assert stat.S_IMODE((here.host_dir / preflight.FILE).stat().st_mode) == 0o600


def test_a_finding_of_one_card_dooms_who_has_it(here: Settings) -> None:
    preflight.leave(here, Notes([replace(DOOM, devices=(3,))]))
    assert preflight.refusal(here, _spec(here), devices=[0, 1]) is None
    refused = preflight.refusal(here, _spec(here), devices=[1, 3])
    assert refused is not None
    assert refused[0] is ExitReason.LAUNCH_ERROR


@pytest.mark.parametrize("age_s", [0.0, 1e6], ids=["of another boot", "old"])
def test_notes_that_nobody_keeps_up_say_nothing(here: Settings, monkeypatch: pytest.MonkeyPatch, age_s: float) -> None:
    preflight.leave(here, Notes([DOOM]))
    now = proc.boottime()
    if age_s:
        monkeypatch.setattr(proc, "boottime", lambda: now + age_s)
    else:
        monkeypatch.setattr(proc, "boot_id", lambda: "another")
    assert preflight.refusal(here, _spec(here), devices=[0]) is None


def test_a_corpus_that_has_changed_since_is_looked_at(here: Settings, tmp_path: Path) -> None:
    preflight.leave(here, Notes())
    (tmp_path / "inputs" / "a.txt").write_bytes(b"\0\0")
    assert preflight.refusal(here, _spec(here), devices=[0]) == (
        ExitReason.USER_ERROR,
        f"train.train_file ({tmp_path}/inputs/a.txt) has a NUL at byte 0, so it is no text",
    )


@pytest.mark.parametrize("place", ["worker.doctor.inputs.of_corpus", "store.data_roots._look_up"])
def test_a_disk_that_fails_is_not_the_users_mistake(
    here: Settings, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def fail(_path: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(place, fail)
    refused = preflight.refusal(here, _spec(here), devices=[0])
    assert refused is not None
    assert refused[0] is ExitReason.STORAGE
    assert "on host here train.train_file (" in refused[1]
    assert "Input/output error" in refused[1]


@pytest.mark.parametrize("field", ["model_name_or_path", "config_name"])
def test_a_disk_without_room_for_one_checkpoint_refuses_the_job(
    here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(BASE))
    free = 1000 << 20
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(free, 0, free))
    refused = preflight.refusal(here, _spec(here, **{field: str(model)}), devices=[0])
    assert refused is not None
    assert refused[0] is ExitReason.STORAGE
    found = re.search(r"has 1000 MiB left, and one checkpoint takes at least (\d+) MiB", refused[1])
    assert found is not None
    # 149 million parameters with two moments each; those of global attention are not trained, and have none.
    assert 1500 < int(found[1]) < 1710
    free = (int(found[1]) + 1) << 20
    assert preflight.refusal(here, _spec(here, **{field: str(model)}), devices=[0]) is None


def test_a_round_leaves_notes_and_looks_again_only_at_what_changed(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.host_dir.mkdir(parents=True)
    with database.write() as session:
        hosts.register(session, settings.host_name, device_type="cpu", device_names=["x"], boot_id="1", versions={})
    monkeypatch.setattr(runner, "OF_HOST", (lambda _site: iter([DOOM]),))
    assert Checkup(settings, database, CPU).run() == [DOOM]
    assert (
        preflight.doom_of(preflight._read(settings).findings, devices=[0])
        == "torch is not installed; pip install torch"
    )


def test_a_look_costs_a_trivial_job_a_few_milliseconds(here: Settings) -> None:
    """In processor time, which a busy machine does not prolong: 20 ms are allowed."""
    preflight.leave(here, Notes([replace(DOOM, dooms_jobs=False)] * 20, {f"/some/file:{n}": None for n in range(1000)}))
    spec = _spec(here)
    costs: list[float] = []
    for _ in range(20):
        began = time.thread_time()
        assert preflight.refusal(here, spec, devices=[0]) is None
        costs.append(time.thread_time() - began)
    assert min(costs) < 0.02


def test_a_host_that_can_run_nothing_is_given_nothing_and_says_why(plane: Plane) -> None:
    plane.start(LONGYARD_TRAINER_MODULE="no_such_trainer", LONGYARD_CHECKUP_S="0.3")

    def reason() -> str | None:
        with plane.database.read() as session:
            (view,) = hosts.all_hosts(session)
        return view.devices[0].device.unfit_reason

    assert "there is no Python module no_such_trainer" in plane.eventually(reason)
    job_id = plane.submit([{"do": "succeed"}])
    plane.eventually(lambda: plane.job(job_id).wait_reason)
    assert plane.job(job_id).num_attempts == 0


def test_a_launch_is_refused_before_any_rank_starts(plane: Plane) -> None:
    plane.start()
    tokenizer = plane.inputs / "bad"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    job_id = plane.submit([{"do": "succeed"}], tokenizer_name=str(tokenizer))
    job = plane.until_ended(job_id)
    assert job.status is JobStatus.FAILED
    assert (job.status_reason or "").startswith(
        f"train.tokenizer_name ({tokenizer}) has no vocabulary in tokenizer.json"
    )
    assert not (plane.run_dir(job_id) / "r0.log").exists()
    plane.assert_clean(job_id)


def test_the_notes_are_json_that_a_person_can_read(plane: Plane) -> None:
    plane.start(LONGYARD_CHECKUP_S="0.3")
    path = plane.settings.host_dir / preflight.FILE
    plane.eventually(path.exists)
    assert json.loads(path.read_text())["boot_id"] == proc.boot_id()
