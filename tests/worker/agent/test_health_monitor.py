"""Work in a thread that nobody waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable

from worker.agent.errand import Errand


def test_a_hurry_during_the_work_has_it_done_once_more(eventually: Callable[..., object]) -> None:
    began, may_end = threading.Semaphore(0), threading.Semaphore(0)
    done: list[int] = []

    def work() -> int:
        began.release()
        assert may_end.acquire(timeout=30)
        done.append(len(done) + 1)
        return done[-1]

    told = threading.Event()
    errand = Errand("test", work, every_s=3600.0, tell=told.set)
    errand.start()
    assert began.acquire(timeout=30)
    assert errand.take() is None
    errand.hurry()
    may_end.release()
    assert told.wait(30)
    assert began.acquire(timeout=30)
    may_end.release()
    eventually(lambda: errand.take() == 2)
    assert errand.take() is None


def test_work_that_fails_is_tried_again(eventually: Callable[..., object]) -> None:
    tries: list[int] = []

    def work() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise RuntimeError("not yet")
        return len(tries)

    errand = Errand("test", work, every_s=0.01, tell=lambda: None)
    errand.start()
    eventually(lambda: (errand.take() or 0) >= 3)
