"""With a broker: hints make everything quick, and none of them decides anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from store import celery_app, jobs
from store.pubsub import Notifier
from store.states import JobStatus

if TYPE_CHECKING:
    from tests.worker.conftest import Plane


@pytest.fixture
def hinted(plane: Plane) -> Iterator[tuple[Plane, celery_app.Sender]]:
    """A host that looks by itself only every ten minutes: what happens sooner, a hint has done."""
    with plane.broker():
        plane.start(LONGYARD_HOST_LOOP_S="600", LONGYARD_HEARTBEAT_S="600", LONGYARD_LEASE_S="6000")
        yield plane, celery_app.Sender(celery_app.app(plane.settings.broker_url))


def test_hints_start_jobs_at_once(hinted: tuple[Plane, celery_app.Sender]) -> None:
    """The second and third wait for devices: the end of the one before is their hint."""
    plane, sender = hinted
    submitted = [plane.submit([{"do": "say", "text": "hello"}, {"do": "succeed"}], num_devices=2) for _ in range(3)]
    plane.eventually(sender.schedule)
    for job_id in submitted:
        assert plane.until_ended(job_id).status is JobStatus.SUCCEEDED
        assert plane.log(job_id) == b"hello\n"


def test_doubled_and_forged_hints_start_nothing_twice(hinted: tuple[Plane, celery_app.Sender]) -> None:
    plane, sender = hinted
    go = plane.flags / "go"
    job_id = plane.submit([{"do": "wait_for", "path": str(go)}, {"do": "succeed"}])
    for _ in range(30):
        plane.eventually(sender.schedule)
    plane.until_status(job_id, JobStatus.RUNNING)
    for name in (plane.attempt(job_id).id, "no-such-attempt", "../../etc"):
        for _ in range(10):
            plane.eventually(lambda name=name: sender.launch(plane.settings.host_name, name))
    # The hints before this one have been taken when what it starts has ended.
    after = plane.submit([{"do": "succeed"}])
    plane.eventually(sender.schedule)
    assert plane.until_ended(after).status is JobStatus.SUCCEEDED
    assert len(plane.ranks(job_id)) == 1
    go.touch()
    assert plane.until_ended(job_id).status is JobStatus.SUCCEEDED
    assert plane.job(job_id).num_attempts == 1
    assert plane.kinds(job_id).count("attempt_started") == 1


def test_a_wake_up_shows_the_supervisor_its_jobs_intent(hinted: tuple[Plane, celery_app.Sender]) -> None:
    plane, sender = hinted
    notifier = Notifier(plane.settings.broker_url)
    job_id = plane.submit([{"do": "say", "text": "up"}, {"do": "wait_for_stop"}])
    plane.eventually(sender.schedule)
    plane.until_log(job_id, b"up")
    plane.cancel(job_id)
    notifier.publish_intent(job_id)
    assert plane.until_ended(job_id).status is JobStatus.CANCELLED
    notifier.close()


def test_a_broker_that_comes_late_is_found(plane: Plane) -> None:
    plane.start()
    first = plane.submit([{"do": "succeed"}])
    assert plane.until_ended(first).status is JobStatus.SUCCEEDED, "without any broker"
    with plane.broker():
        second = plane.submit([{"do": "wait_for_stop"}])
        plane.until_status(second, JobStatus.RUNNING)
        with plane.database.write() as session:
            jobs.cancel(session, second)
        assert plane.until_ended(second).status is JobStatus.CANCELLED
