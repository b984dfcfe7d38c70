"""Owns the rows of one attempt: what its files say, committed batch by batch with its offsets, under the fence."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError
from sqlalchemy.orm import Session

from linux import proc
from store import attempts, checkpoints, device_health, events, hosts, jobs, logs, metrics
from store.db import Database
from store.metrics import Point
from store.models import Job
from store.states import Closing, Intent
from worker.devices.ascend import Action
from worker.ingest import tail
from worker.ingest.batch import Files, News, Note, Offsets, Piece
from worker.ingest.tail import Metrics, Pace, Phase, Published, Report, StartUp
from worker.supervisor.exit_reason import Verdict

MAX_NAMES: Final = 1000

_POISON = (IntegrityError, DataError, ProgrammingError, ValueError, AssertionError)
"""What a batch can raise that no retry mends; anything else is the database being away."""

log = logging.getLogger(__name__)
T = TypeVar("T")


class Ledger:
    """One attempt's writer: its supervisor, or whoever cleans up after it. Every method raises LeaseLost once the attempt is closed.

    `renewed_at` is the boot time read before the last transaction that renewed the lease began; `intent` is what it found.
    """

    def __init__(
        self,
        database: Database,
        *,
        attempt_id: str,
        job_id: str,
        run_dir: Path,
        num_ranks: int,
        max_log_bytes: int,
        retry_s: float,
    ) -> None:
        self._database, self._run_dir = database, run_dir
        self._attempt_id, self._job_id = attempt_id, job_id
        self._files = Files(run_dir, num_ranks=num_ranks, max_log_bytes=max_log_bytes)
        self._retry_s = retry_s
        self._offsets: Offsets | None = None
        self._names: set[str] | None = None
        self._told: set[tuple[str, int | None]] = set()
        self._telling: set[tuple[str, int | None]] = set()
        self._pace = Pace()
        self._total_steps: int | None = None
        self._is_poisoned = False
        self._notes: deque[Note] = deque()
        self.launch_s: float | None = None
        """From the request to the start of the ranks: what comes before the parts of a start-up that a rank can tell."""
        self.intent = Intent.RUN
        self.renewed_at = proc.boottime()
        self._began_at: float | None = None

    def begin(self, *, boot_id: str) -> Job:
        """starting → running: from here on this process has the lease."""
        began = proc.boottime()
        with self._database.write() as session:
            job = attempts.begin(session, self._attempt_id, job_id=self._job_id, boot_id=boot_id)
        self.renewed_at, self._began_at, self.intent = began, began, job.intent
        return job

    def adopt(self, began_at: float) -> None:
        """As `begin`, at a boot time, where the reply to it was lost: only for who knows that it was itself."""
        self._began_at = began_at
        self.commit()

    @property
    def has_notes(self) -> bool:
        return bool(self._notes)

    def note(self, kind: str, **data: Any) -> None:
        """Have an event told with the next commit, once, whatever becomes of that commit. From any thread."""
        self._notes.append(Note(kind, data))

    def look_at_intent(self) -> None:
        """Without writing anything: for the moments between two renewals."""
        with self._database.read() as session:
            self.intent = jobs.get(session, self._job_id).intent

    def commit(self, *, renew: bool = True) -> News:
        """Write what is new and renew the lease with it; `renew`: also where nothing is new."""
        news = self._look(final=False)
        if renew or not news.is_empty:
            self._transact(news, lambda _session, _job: None)
        return news

    def record(self, write: Callable[[Session, Job], None]) -> None:
        """Have something else written with what is new, under the fence."""
        self._transact(self._look(final=False), write)

    def close(self, verdict: Verdict, *, devices_clean: bool, is_stuck: bool = False) -> Closing:
        """Drain the files to their end, then close the attempt together with the last of them.

        `is_stuck`: a process of it cannot be ended, so its devices are quarantined.
        """
        while (news := self._look(final=True)).more:
            self._transact(news, lambda _session, _job: None)

        def closing(session: Session, job: Job) -> Closing:
            self._tell_dropped(session, job)
            self._act_on_card(session, job, verdict)
            answer = attempts.close(
                session,
                self._attempt_id,
                job_id=self._job_id,
                reason=verdict.reason,
                message=verdict.message,
                failing_rank=verdict.failing_rank,
                result=verdict.result,
                devices_clean=devices_clean,
                retry_s=self._retry_s,
            )
            if is_stuck:
                hosts.quarantine(session, self._attempt_id)
                attempt = attempts.get(session, self._attempt_id)
                events.append(session, job, kind="devices_quarantined", attempt=attempt.number, devices=attempt.devices)
            return answer

        return self._transact(news, closing)

    def _act_on_card(self, session: Session, job: Job, verdict: Verdict) -> None:
        """What the fault asks of the card that the failing rank ran on."""
        if verdict.action is Action.NONE or verdict.failing_rank is None:
            return
        attempt = attempts.get(session, self._attempt_id)
        index, why = attempt.devices[verdict.failing_rank], verdict.message or ""
        if verdict.action is Action.CORDON:
            device_health.cordon_broken(session, job, attempt, index=index, why=why)
        else:
            events.append(
                session,
                job,
                kind="device_wants_reset",
                attempt=attempt.number,
                host=attempt.host,
                device=index,
                why=why,
            )

    def _transact(self, news: News, then: Callable[[Session, Job], T]) -> T:
        """Fence, news, offsets, `then`: all or nothing. Whatever fails, the offsets are read again: a reply may be lost after a commit."""
        began = proc.boottime()
        self._telling = set()
        try:
            with self._database.write() as session:
                ran_s = None if self._began_at is None else began - self._began_at
                job = attempts.renew(session, self._attempt_id, job_id=self._job_id, ran_s=ran_s)
                self._record(session, job, news)
                answer = then(session, job)
        except _POISON:
            self._offsets = None
            if news.is_empty or self._is_poisoned:
                raise
            log.exception("attempt %s: its files cannot be committed; going on without them", self._attempt_id)
            self._is_poisoned = True
            return self._transact(self._look(final=False), then)
        except BaseException:
            self._offsets = None
            raise
        self.renewed_at, self.intent = began, job.intent
        self._told |= self._telling
        self._advance(news)
        return answer

    def _look(self, *, final: bool) -> News:
        offsets = self._offsets = self._offsets or self._committed()
        notes = tuple(self._notes)
        if self._is_poisoned:
            return News((), 0, offsets.metrics, (), more=False, notes=notes)
        return replace(self._files.beyond(offsets, final=final), notes=notes)

    def _committed(self) -> Offsets:
        with self._database.read() as session:
            ends = logs.ends(session, self._attempt_id)
            dropped = logs.dropped(session, self._attempt_id)
            offset = attempts.get(session, self._attempt_id).metrics_offset
        return Offsets(offset, ends, sum(ends.values()) - sum(dropped.values()), dropped)

    def _record(self, session: Session, job: Job, news: News) -> None:
        points = [point for report in news.reports if isinstance(report, Metrics) for point in report.points]
        self._record_points(session, job, points)
        for report in news.reports:
            if isinstance(report, Published):
                self._record_checkpoint(session, job, report)
            elif isinstance(report, StartUp):
                self._record_start_up(session, job, report)
        for piece in news.pieces:
            self._record_piece(session, piece, job)
        for note in news.notes:
            # The reply to an earlier commit of it may have been lost.
            if not events.has(session, job.id, kind=note.kind, data=note.data):
                events.append(session, job, kind=note.kind, **note.data)
        if news.num_bad:
            self._tell_once(session, job, "metrics_skipped", lines=news.num_bad)
        if self._is_poisoned:
            self._tell_once(session, job, "ingest_failed")
        step = self._record_progress(session, job, news)
        if self._offsets is not None and news.metrics_end > self._offsets.metrics:
            attempts.advance_metrics(session, self._attempt_id, offset=news.metrics_end, step=step)

    def _record_points(self, session: Session, job: Job, points: Sequence[Point]) -> None:
        # The cap is the job's: earlier attempts, and an earlier writer of this one, have used names of it.
        known = set(metrics.names(session, job.id, limit=MAX_NAMES)) if self._names is None else set(self._names)
        for point in points:
            if len(known) < MAX_NAMES:
                known.add(point.name)
        self._names = known
        kept = [point for point in points if point.name in known]
        if len(kept) < len(points):
            self._tell_once(session, job, "metrics_dropped", names=MAX_NAMES)
        if kept:
            metrics.append(session, job, attempt_id=self._attempt_id, points=kept)

    def _record_checkpoint(self, session: Session, job: Job, report: Published) -> None:
        # What a rank names outside its own directory, its successor shall not open.
        if Path(report.dir).parent != self._run_dir / "checkpoints":
            self._tell_once(session, job, "checkpoint_refused", dir=report.dir)
            return
        checkpoints.publish(
            session,
            job,
            attempt_id=self._attempt_id,
            step=report.step,
            dir=report.dir,
            manifest_sha256=report.manifest_sha256,
        )

    def _record_start_up(self, session: Session, job: Job, report: StartUp) -> None:
        parts = report.parts if self.launch_s is None else {"launch": round(self.launch_s, 4)} | dict(report.parts)
        events.append(session, job, kind="startup", attempt=attempts.get(session, self._attempt_id).number, parts=parts)

    def _record_piece(self, session: Session, piece: Piece, job: Job) -> None:
        if piece.data is None:
            logs.drop(
                session, attempt_id=self._attempt_id, rank=piece.rank, offset=piece.offset, num_bytes=piece.num_bytes
            )
            self._tell_once(session, job, "log_capped", rank=piece.rank, offset=piece.offset)
            return
        logs.append(session, job, attempt_id=self._attempt_id, rank=piece.rank, offset=piece.offset, data=piece.data)

    def _record_progress(self, session: Session, job: Job, news: News) -> int | None:
        """From rank 0's progress file, which is as new as its last step; from its reports where a trainer writes none."""
        phase: str | None = None
        step: int | None = None
        for report in news.reports:
            if isinstance(report, Phase):
                phase, self._total_steps = report.phase, report.total_steps or self._total_steps
            if isinstance(report, Metrics):
                step = report.step
        seen = tail.read_progress(self._run_dir / "r0.progress")
        if seen is not None:
            step, phase, self._total_steps = seen.step, seen.phase or phase, seen.total_steps or self._total_steps
            self._pace.saw(seen.step, seen.monotonic)
        else:
            self._pace_by_reports(news.reports)
        left_s = self._pace.left_s(self._total_steps)
        jobs.progress(session, job, step=step, total_steps=self._total_steps, phase=phase, eta_s=left_s)
        return step

    def _pace_by_reports(self, reports: Sequence[Report]) -> None:
        for report in reports:
            if isinstance(report, Metrics) and report.points:
                self._pace.saw(report.step, report.points[0].at.timestamp())

    def _advance(self, news: News) -> None:
        offsets = self._offsets
        assert offsets is not None
        offsets.metrics = news.metrics_end
        for _ in news.notes:
            self._notes.popleft()
        for piece in news.pieces:
            offsets.logs[piece.rank] = piece.offset + piece.num_bytes
            if piece.data is None:
                offsets.dropped[piece.rank] = offsets.dropped.get(piece.rank, 0) + piece.num_bytes
                self._files.forget(piece)
            else:
                offsets.kept_bytes += piece.num_bytes

    def _tell_dropped(self, session: Session, job: Job) -> None:
        dropped = self._offsets.dropped if self._offsets is not None else {}
        for rank, num_bytes in sorted(dropped.items()):
            if num_bytes:
                events.append(session, job, kind="log_dropped", rank=rank, num_bytes=num_bytes)

    def _tell_once(self, session: Session, job: Job, kind: str, *, rank: int | None = None, **data: int | str) -> None:
        """Once an attempt, and a rank where it is about one; the reply to an earlier commit of it may have been lost."""
        key = (kind, rank)
        if key in self._told or key in self._telling:
            return
        self._telling.add(key)
        about: dict[str, Any] = {"attempt": job.num_attempts} | ({} if rank is None else {"rank": rank})
        if not events.has(session, job.id, kind=kind, data=about):
            events.append(session, job, kind=kind, **about, **data)
