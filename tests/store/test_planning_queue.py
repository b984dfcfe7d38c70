"""What a planning pass reads, and the order that it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

from sqlalchemy import event

from store import attempts, hosts, ids, jobs, planning_queue, usage
from store.db import Database, now
from store.jobs import NewJob
from store.models import Attempt, Device, QueueOrder
from store.placement.types import Reservation, Share
from store.states import DeviceState, ExitReason
from store.usage import Usage

Submit = Callable[[], str]


def test_a_pass_reads_two_statements_however_much_there_is(
    database: Database, running: Attempt, submit: Submit
) -> None:
    for _ in range(5):
        submit()
    seen: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda _c, _cu, statement, *_: seen.append(statement))
    with database.read() as session:
        found = planning_queue.read(session, Usage())
    assert len(found.waiting) == 5
    assert len([statement for statement in seen if statement.startswith("SELECT")]) == 2


def test_only_devices_in_service_can_be_given_and_only_hosts_online(
    database: Database, host: str, running: Attempt, submit: Submit
) -> None:
    submit()
    with database.write() as session:
        session.get_one(Device, (host, 3)).state = DeviceState.QUARANTINED
        for name in ("b", "c"):
            hosts.register(session, name, device_type="npu", device_names=["npu"] * 8, boot_id="1", versions={})
        hosts.leave(session, "b")
    with database.read() as session:
        first, second = planning_queue.read(session, Usage()).hosts
    assert (first.name, first.free, first.usable, first.num_devices, first.group) == ("a", (2,), (0, 1, 2), 4, 0)
    assert (second.name, second.free, second.group) == ("c", tuple(range(8)), 4)


def test_what_runs_is_read_with_what_is_left_of_it(database: Database, running: Attempt, submit: Submit) -> None:
    submit()
    lately = Usage(mean_s={("admin", "demo"): 1000.0})

    def read() -> tuple[float | None, float, bool]:
        with database.read() as session:
            (one,) = planning_queue.read(session, lately).running
        assert (one.id, one.host, one.device_indices, one.owner) == (running.job_id, "a", (0, 1), "admin")
        return one.left_s, one.held_s, one.is_stopping

    assert read() == (1000.0, 0.0, False), "as such jobs took before"
    with database.write() as session:
        job = attempts.renew(session, running.id, job_id=running.job_id, ran_s=400.0)
    assert read() == (600.0, 400.0, False)
    with database.write() as session:
        job = jobs.touch(session, running.job_id)
        job.time_limit_s = 450.0
    assert read() == (50.0 + planning_queue.STOPPING_S, 400.0, False), "its limit ends it, and the stop takes a while"
    with database.write() as session:
        jobs.progress(session, jobs.touch(session, job.id), step=1, total_steps=2, phase="train", eta_s=7.0)
    assert read() == (7.0, 400.0, False), "as it measures itself"
    with database.write() as session:
        jobs.preempt(session, running.job_id, why="the test")
    assert read() == (planning_queue.STOPPING_S, 400.0, True)


def test_a_doubtful_device_is_nobodys(database: Database, running: Attempt, submit: Submit) -> None:
    submit()
    with database.write() as session:
        attempts.close(
            session,
            running.id,
            job_id=running.job_id,
            reason=ExitReason.LEASE_EXPIRED,
            message=None,
            devices_clean=False,
        )
    with database.read() as session:
        found = planning_queue.read(session, Usage())
    assert found.running == []
    assert (found.hosts[0].free, found.hosts[0].usable) == ((2, 3), (2, 3))


def test_the_order_is_kept_whole_and_gives_positions(database: Database, submit: Submit) -> None:
    made = [submit() for _ in range(4)]
    with database.write() as session:
        planning_queue.keep_order(session, planning_queue.encode([made[2], made[0], made[3]]))
    with database.read() as session:
        assert planning_queue.positions(session, made) == {made[2]: 1, made[0]: 2, made[3]: 3}
        order = planning_queue.order(session)
    assert planning_queue.is_at(order, 2, made[0])
    assert not planning_queue.is_at(order, 4, made[1])


def test_an_order_that_was_lost_is_empty_and_made_anew_by_the_next_pass(database: Database, submit: Submit) -> None:
    job_id = submit()
    with database.write() as session:
        session.delete(session.get_one(QueueOrder, 1))
    with database.read() as session:
        assert planning_queue.positions(session, [job_id]) == {}
    for _ in range(2):
        with database.write() as session:
            planning_queue.keep_order(session, planning_queue.encode([job_id]))
        with database.read() as session:
            assert planning_queue.positions(session, [job_id]) == {job_id: 1}


def test_a_position_is_found_only_where_an_id_begins(database: Database) -> None:
    first, second = "00000000-0000-7000-8000-000000000011", "11000000-0000-7000-8000-000000000000"
    hidden = (bytes.fromhex(first.replace("-", "")) + bytes.fromhex(second.replace("-", "")))[15:31]
    with database.write() as session:
        planning_queue.keep_order(session, planning_queue.encode([first, second]))
    with database.read() as session:
        assert planning_queue.positions(session, [second, _text(hidden)]) == {second: 2}


def test_what_is_kept_for_a_job_is_read_back(database: Database, submit: Submit) -> None:
    promise = Reservation(level=0, number=3, host="a", device_indices=(0, 1))
    job_id = submit()
    with database.write() as session:
        jobs.set_wait(session, job_id, reason="needs 2", reservation=planning_queue.store_reservation(promise))
    with database.read() as session:
        (one,) = planning_queue.read(session, Usage()).waiting
    assert (one.job.reservation, one.reason) == (promise, "needs 2")


def test_usage_fades_by_half_a_day_and_knows_how_long_jobs_take(database: Database, host: str, new_job: NewJob) -> None:
    def run(owner: str, ran_s: float, *, reason: ExitReason | None = ExitReason.COMPLETED) -> None:
        with database.write() as session:
            job_id = jobs.submit(session, replace(new_job, num_devices=1), owner=owner)[0].id
            free = hosts.all_hosts(session)[0].capacity.free
            attempt = attempts.place(session, job_id, host=host, device_indices=free[:1])
        with database.write() as session:
            attempts.begin(session, attempt.id, job_id=job_id, boot_id="1")
            attempts.renew(session, attempt.id, job_id=job_id, ran_s=ran_s)
            if reason is not None:
                attempts.close(session, attempt.id, job_id=job_id, reason=reason, message=None, devices_clean=True)

    run("ada", 100.0)
    run("ada", 300.0)
    run("ada", 50.0, reason=ExitReason.USER_ERROR)
    run("bob", 40.0, reason=None)
    with database.read() as session:
        found = usage.recent(session)
    assert 0.95 * 450 < found.used_device_s["ada"] <= 450, "within the hour"
    assert 0.95 * 40 < found.used_device_s["bob"] <= 40, "what runs counts already"
    assert found.typical_s("ada", "demo", ran_s=0.0) == 200.0
    assert found.typical_s("ada", "other", ran_s=50.0) == 150.0
    assert found.typical_s("ada", "demo", ran_s=201.0) is None, "past what such jobs take: nothing is known"
    assert found.typical_s("bob", "demo", ran_s=0.0) is None
    shares = found.shares(["ada", "eve"], quotas={"*": 8, "ada": 4}, weights={"ada": 2.0})
    assert shares["ada"] == Share(2.0, 4, found.used_device_s["ada"])
    assert shares["eve"] == Share(1.0, 8, 0.0)


def test_an_id_of_now_is_not_below_the_floor_of_now() -> None:
    assert ids.floor(now()) <= ids.new()


def _text(raw: bytes) -> str:
    return str(UUID(bytes=raw))
