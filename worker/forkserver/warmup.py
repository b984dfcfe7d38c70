"""Owns a supervisor's life in one transaction that is rolled back: who forks afterwards forks with every statement compiled."""

from __future__ import annotations

import logging
from contextlib import suppress
from importlib import metadata
from typing import Final

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from store import attempts, checkpoints, hosts, ids, jobs, logs, metrics
from store.db import Database, now
from store.errors import LongyardError
from store.jobs import NewJob
from store.metrics import Point
from store.pubsub import Notifier, channel_intent
from store.states import ExitReason

ANSWER_S: Final = 0.5

log = logging.getLogger(__name__)


class _Enough(Exception):
    pass


def rehearse(database: Database, notifier: Notifier) -> None:
    """Leaves nothing in the database and no connection open. Without a database the first attempts are slower, and that is all."""
    # redis-py asks for its own version at its first connection, which loads a parser of e-mails.
    metadata.version("redis")
    _listen(notifier)
    try:
        with database.write() as session:
            _live(session)
            raise _Enough
    except _Enough:
        pass
    except (SQLAlchemyError, LongyardError):
        log.warning("the rehearsal failed; launches are slower", exc_info=True)
    database.dispose()


def _listen(notifier: Notifier) -> None:
    nobody = f"rehearsal-{ids.new()}"
    notifier.publish_intent(nobody)
    with suppress(RedisError), notifier.subscribed(channel_intent(nobody)) as pubsub:
        pubsub.get_message(timeout=ANSWER_S)
    notifier.close()


def _live(session: Session) -> None:
    host = f"rehearsal-{ids.new()}"
    hosts.register(session, host, device_type="cpu", device_names=["slot"], boot_id="", versions={})
    job, _ = jobs.submit(session, NewJob("rehearsal", "", {}, 1, "cpu"), owner="")
    attempt = attempts.place(session, job.id, host=host, device_indices=[0])
    _write(session, job.id, attempt.id)
    # A supervisor starts with none of the rows at hand: reading them is a statement of its own.
    session.expunge_all()
    session.info.clear()
    attempts.get(session, attempt.id)
    jobs.get(session, job.id)
    logs.ends(session, attempt.id)
    logs.dropped(session, attempt.id)
    metrics.names(session, job.id, limit=2)
    checkpoints.newest_first(session, job.id)
    attempts.close(
        session, attempt.id, job_id=job.id, reason=ExitReason.COMPLETED, message=None, devices_clean=True, result={}
    )
    session.flush()


def _write(session: Session, job_id: str, attempt_id: str) -> None:
    attempts.begin(session, attempt_id, job_id=job_id, boot_id="")
    session.flush()
    job = attempts.renew(session, attempt_id, job_id=job_id)
    logs.append(session, job, attempt_id=attempt_id, rank=0, offset=0, data=b"\n")
    metrics.append(session, job, attempt_id=attempt_id, points=[Point("loss", 1, 1.0, now())])
    jobs.progress(session, job, step=1, total_steps=2, phase="train", eta_s=1.0)
    attempts.advance_metrics(session, attempt_id, offset=1, step=1)
    checkpoints.publish(session, job, attempt_id=attempt_id, step=1, dir="", manifest_sha256="")
    session.flush()
