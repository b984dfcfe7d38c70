"""What a person sees of the work before the training: a bar on a terminal, lines now and then in a log."""

import os
import termios
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.trainer.conftest import Inputs
from trainer import report
from trainer.data import dataset, tokenizer
from trainer.dist_env import Place
from trainer.report import Reporter
from trainer.spec.config import RunConfig

Read = Callable[..., None]


@pytest.fixture
def read(spec: Callable[..., dict[str, Any]], inputs: Inputs, tmp_path: Path) -> Read:
    """Builds the token cache of the training text as a rank does it."""

    def build(rank: int = 0) -> None:
        config, vocabulary = RunConfig.model_validate(spec()), tokenizer.load(inputs.tokenizer)
        with Reporter(tmp_path, Place(rank, rank, 2)) as reporter:
            cache = tmp_path / "cache"
            dataset.read(inputs.train_file, "train_file", config, vocabulary, cache, reporter.say, reporter.work)
        assert any(len(path.name) == 64 for path in cache.iterdir())

    return build


@contextmanager
def terminal() -> Generator[Callable[[], str]]:
    """A real one in place of stderr; answers what was drawn on it."""
    screen, line = os.openpty()
    os.set_blocking(screen, False)
    termios.tcsetwinsize(screen, (24, 100))
    with os.fdopen(line, "w") as stderr, redirect_stderr(stderr):

        def drawn() -> str:
            stderr.flush()
            parts: list[bytes] = []
            # It is handed over in parts.
            with suppress(BlockingIOError):
                while True:
                    parts.append(os.read(screen, 1 << 16))
            return b"".join(parts).decode()

        yield drawn
    os.close(screen)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock finds it six seconds later: two pieces of work are a line's time apart."""
    ticks = iter(range(0, 1_000_000, 6))
    monkeypatch.setattr(report, "time", SimpleNamespace(monotonic=lambda: float(next(ticks)), time=report.time.time))


@pytest.mark.usefixtures("slow")
def test_a_terminal_shows_a_bar_to_its_end(read: Read, inputs: Inputs, capsys: pytest.CaptureFixture[str]) -> None:
    with terminal() as drawn:
        read()
        screen = drawn()
    for what in ("reading", "tokenizing"):
        assert f"{what} {inputs.train_file.name}: 100%" in screen
    assert capsys.readouterr().out == f"tokenizing {inputs.train_file}\n", "no lines beside the bar"


def test_what_is_done_at_once_is_silent_in_a_log(
    read: Read, inputs: Inputs, capsys: pytest.CaptureFixture[str]
) -> None:
    read()
    written = capsys.readouterr()
    assert (written.out, written.err) == (f"tokenizing {inputs.train_file}\n", "")


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("rank", [0, 1])
def test_long_work_tells_lines_in_a_log(
    read: Read, inputs: Inputs, rank: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of whichever rank does it: the others wait for it."""
    read(rank)
    written = capsys.readouterr()
    size = f"{inputs.train_file.stat().st_size / 1e6:,.0f}"
    assert f"tokenizing {inputs.train_file.name}: 100% of {size} MB\n" in written.out
    assert written.err == ""
