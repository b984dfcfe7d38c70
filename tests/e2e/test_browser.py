"""The dashboard in real Chromium, on a real plane that really trains."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.conftest import Json, Plane

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

Eventually = Callable[..., object]

VERDICT_S = 5.0
"""From the exception to the words on the page, at most."""

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium where it is installed, else the one `playwright install chromium` brought."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("LONGYARD_CHROMIUM") or shutil.which("chromium"), args=FLAGS
        )
        yield browser
        browser.close()


@pytest.fixture
def complaints() -> list[str]:
    return []


@pytest.fixture
def page(chromium: Browser, plane: Plane, complaints: list[str]) -> Iterator[Page]:
    """Signed in by a one-time link. Whatever the page's console complains of fails the test."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, locale="en-GB")
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(plane.url + plane.post("/login-codes")["path"])
    expect(page).to_have_url(plane.url + "/ui/")
    yield page
    context.close()
    assert complaints == []


def test_a_job_is_seen_to_train_and_another_is_cancelled(page: Page, plane: Plane, eventually: Eventually) -> None:
    expect(page.get_by_text("curl")).to_be_visible()  # nothing submitted yet: the page says how

    first = submit_from(page, plane.spec("watched", num_devices=2, max_steps=100_000))
    row = page.get_by_test_id("job-row").filter(has_text="watched")
    expect(row.get_by_test_id("status")).to_have_text("running", ignore_case=True)
    row.get_by_role("link", name="watched").click()
    expect(page).to_have_url(f"{plane.url}/ui/jobs/{first}")

    curve = page.get_by_test_id("chart-loss")
    points = lambda: int(curve.get_attribute("data-points") or 0)  # noqa: E731
    eventually(lambda: points() >= 5)
    seen = points()
    eventually(lambda: points() > seen)
    expect(page.get_by_test_id("chart-speed")).to_be_visible()

    log = page.get_by_test_id("log")
    expect(log).to_contain_text("step ")
    before = log.inner_text()
    eventually(lambda: log.inner_text() != before)
    shot(page, "training")

    second = plane.submit("unwanted", max_steps=100_000)
    page.goto(f"{plane.url}/ui/jobs/{second}")
    eventually(lambda: (plane.job(second)["progress"] or {}).get("step"))
    page.get_by_test_id("cancel").click()
    page.get_by_test_id("cancel-confirm").click()
    expect(page.get_by_test_id("status").first).to_have_text("cancelled", ignore_case=True)
    assert plane.job(second)["status"] == "cancelled"
    assert plane.job(first)["status"] == "running"


def test_a_job_is_paused_resumed_cancelled_and_retried(page: Page, plane: Plane, eventually: Eventually) -> None:
    job_id = plane.submit("handled", max_steps=100_000, save_steps=20)
    page.goto(f"{plane.url}/ui/jobs/{job_id}")
    status, reached = (
        page.get_by_test_id("status").first,
        lambda: (plane.job(job_id)["progress"] or {}).get("step") or 0,
    )
    eventually(lambda: reached() > 20)
    page.get_by_test_id("pause").click()
    expect(status).to_have_text("paused", ignore_case=True)
    stood = reached()

    page.get_by_test_id("resume").click()
    expect(status).to_have_text("running", ignore_case=True)
    eventually(lambda: reached() > stood)

    page.get_by_test_id("cancel").click()
    page.get_by_test_id("cancel-confirm").click()
    expect(status).to_have_text("cancelled", ignore_case=True)

    stood = reached()
    page.get_by_test_id("retry").click()
    expect(status).to_have_text("running", ignore_case=True)
    eventually(lambda: reached() > stood)
    expect(page.get_by_text("Attempt 3 started")).to_be_visible()  # the page follows again, without a reload
    shot(page, "retried")
    plane.post(f"/jobs/{job_id}/cancel")
    expect(status).to_have_text("cancelled", ignore_case=True)


def test_the_end_of_a_job_is_told_without_a_reload(page: Page, plane: Plane) -> None:
    job_id = plane.submit("ends", max_steps=40, do_eval=True)
    page.goto(f"{plane.url}/ui/jobs/{job_id}")
    expect(page.get_by_test_id("status").first).to_have_text("succeeded", ignore_case=True, timeout=120_000)
    result = plane.job(job_id)["result"]
    expect(page.get_by_test_id("result")).to_contain_text(f"{result['perplexity']:,.0f}"[:3])
    expect(page.get_by_test_id("result")).to_contain_text("output")
    shot(page, "succeeded")


def test_a_failure_is_told_on_the_page(page: Page, plane: Plane) -> None:
    text = plane.inputs / "broken.txt"
    # Behind the head of the file, at which the host looks before it starts a rank.
    text.write_bytes(b"good line\n" * 500_000 + b"\xff\xfe is no text\n")
    job_id = plane.submit("fails", train_file=str(text))
    page.goto(f"{plane.url}/ui/jobs/{job_id}")
    failure = page.get_by_test_id("failure")
    expect(failure).to_contain_text("UTF-8", timeout=120_000)
    expect(failure).to_contain_text("rank 0", ignore_case=True)
    expect(failure).to_contain_text("broken.txt")
    raised = json.loads((plane.data_dir / "jobs" / job_id / "a1" / "r0.error.json").read_text())
    assert time.monotonic() - raised["monotonic"] < VERDICT_S
    shot(page, "failed")


def test_markup_in_a_name_is_text(page: Page, plane: Plane) -> None:
    name = "<img src=x onerror=alert(1)> & \u202e"
    plane.submit(name, max_steps=1)
    expect(page.get_by_test_id("job-row").filter(has_text="<img src=x")).to_be_visible()
    assert page.locator("img[src=x]").count() == 0


def test_a_used_link_and_no_login_are_answered_in_words(chromium: Browser, plane: Plane) -> None:
    link = plane.url + plane.post("/login-codes")["path"]
    for _ in range(2):
        context = chromium.new_context()
        page = context.new_page()
        page.goto(link)
        page.wait_for_url(plane.url + "/ui/") if _ == 0 else expect(
            page.get_by_test_id("login-problem")
        ).to_be_visible()
        context.close()
    context = chromium.new_context()
    page = context.new_page()
    answer = page.goto(plane.url + "/ui/")
    assert answer is not None
    assert answer.status == 401
    expect(page.get_by_test_id("token")).to_be_visible()
    page.get_by_test_id("token").fill(plane.token)
    page.get_by_test_id("sign-in").click()
    expect(page).to_have_url(plane.url + "/ui/")
    context.close()


def test_an_address_of_nothing_says_so_and_leads_to_the_jobs(page: Page, plane: Plane, complaints: list[str]) -> None:
    for path, words in (("/ui/jobs/nope", "There is no such job."), ("/ui/foo", "There is no such page.")):
        page.goto(plane.url + path)
        expect(page.get_by_role("heading", name=words)).to_be_visible()
        expect(page.get_by_text("typed wrong")).to_be_visible()
        expect(page.get_by_test_id("connection")).to_have_text("")
    page.locator("main").get_by_role("link", name="All jobs").click()
    expect(page.get_by_test_id("connection")).to_have_text("Live")
    # The browser itself complains of the job's 404, which is the point.
    assert all("404" in line for line in complaints)
    complaints.clear()


def test_who_waits_is_told_its_place_why_and_until_when(page: Page, plane: Plane, eventually: Eventually) -> None:
    first = plane.submit("runs", num_devices=3, max_steps=100_000)
    eventually(lambda: (plane.job(first)["progress"] or {}).get("eta_s"))
    wide, behind = (plane.submit(name, num_devices=4, max_steps=5) for name in ("wide", "behind"))
    estimated = eventually(lambda: plane.job(wide)["wait"]["estimated_start_at"])
    assert estimated

    page.goto(f"{plane.url}/ui/jobs/{wide}")
    expect(page.get_by_test_id("reason")).to_have_text(
        re.compile(r"waiting: needs 4 free cpu devices on one host; e2e frees 4 in about [\d.]+ (min|h|days)$")
    )
    expect(page.get_by_test_id("place")).to_have_text("1")
    expect(page.get_by_test_id("estimate")).to_contain_text("in ")
    expect(page.get_by_test_id("estimate")).to_contain_text("cards are kept for it")
    shot(page, "waits")

    page.goto(f"{plane.url}/ui/jobs/{behind}")
    expect(page.get_by_test_id("reason")).to_contain_text("1 job ahead")
    expect(page.get_by_test_id("place")).to_have_text("2")
    page.goto(f"{plane.url}/ui/")
    row = page.get_by_test_id("job-row").filter(has_text="wide")
    expect(row).to_contain_text("position 1 in the queue")
    expect(row).to_contain_text("starts in ")
    expect(row.get_by_test_id("wait")).to_contain_text("needs 4 free cpu devices on one host")
    shot(page, "queue")

    plane.post(f"/jobs/{wide}/cancel")
    row = page.get_by_test_id("job-row").filter(has_text="behind")
    expect(row).to_contain_text("position 1 in the queue")  # it has moved up, without a reload


def test_a_host_is_drained_and_a_card_cordoned_on_their_page(page: Page, plane: Plane, eventually: Eventually) -> None:
    job_id = plane.submit("stays", max_steps=100_000)
    eventually(lambda: (plane.job(job_id)["progress"] or {}).get("step"))
    page.goto(f"{plane.url}/ui/hosts")
    host = page.get_by_test_id("host").filter(has_text="e2e")
    card = host.get_by_test_id("device").nth(plane.job(job_id)["attempt"]["devices"][0])
    expect(card).to_contain_text("In use · admin")

    card.get_by_test_id("cordon").click()
    expect(card).to_contain_text("Cordoned")
    expect(card.get_by_test_id("uncordon")).to_be_visible()
    host.get_by_test_id("drain").click()
    expect(host).to_contain_text("Draining")
    waits = plane.submit("waits", max_steps=5)
    eventually(lambda: "e2e, which has 4, is drained" in plane.job(waits)["wait"]["reason"])
    assert plane.job(job_id)["status"] == "running"
    shot(page, "drained")

    host.get_by_test_id("undrain").click()
    expect(host).to_contain_text("Online")
    eventually(lambda: plane.job(waits)["status"] != "queued")
    card.get_by_test_id("uncordon").click()
    expect(card.get_by_test_id("cordon")).to_be_visible()


def submit_from(page: Page, spec: Json) -> str:
    """POST by the page itself, under its session, as a script on it would."""
    post = """async (spec) => {
        const headers = { 'Content-Type': 'application/json' };
        const answer = await fetch('/jobs', { method: 'POST', headers, body: JSON.stringify(spec) });
        return { status: answer.status, job: await answer.json() };
    }"""
    answer = page.evaluate(post, spec)
    assert answer["status"] == 201, answer
    return answer["job"]["id"]


def shot(page: Page, name: str) -> None:
    """A picture for whoever wants to look: LONGYARD_SCREENSHOTS names a directory."""
    if directory := os.environ.get("LONGYARD_SCREENSHOTS"):
        page.screenshot(path=f"{directory}/{name}.png", full_page=True)
