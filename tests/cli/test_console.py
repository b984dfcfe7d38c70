import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cli import console

SLEEPER = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_failure_shows_the_end_of_its_own_output(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_text("from the step before\n")
    argv = [sys.executable, "-c", "import sys; print('what went wrong'); sys.exit(3)"]
    with pytest.raises(console.StepError) as failure:
        console.run("trying", argv, cwd=tmp_path, env=dict(os.environ), log=log)
    text = str(failure.value)
    assert "what went wrong" in text
    assert "from the step before" not in text
    assert "exit code 3" in text
    assert str(log) in text


def test_progress_and_success_are_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    console.run("working", [sys.executable, "-c", "print('hidden')"], cwd=tmp_path, env=dict(os.environ))
    told = capfd.readouterr()
    assert told.err.startswith("working …\nworking: done in ")
    assert told.out == ""


def test_a_stop_ends_the_whole_group(tmp_path: Path, eventually: Callable[..., object]) -> None:
    """What `./run` does at a ^C: the step's own children go with it."""
    log = tmp_path / "console.log"
    script = (
        "import signal, sys, os\n"
        "from pathlib import Path\n"
        "from cli import console\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        f"console.run('waiting', [sys.executable, '-c', {SLEEPER!r}], cwd=Path('.'), env=dict(os.environ), log=Path({str(log)!r}))\n"
    )
    running = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    eventually(lambda: log.exists() and log.read_text().endswith("\n"))
    grandchild = int(log.read_text())
    children = psutil.Process(running.pid).children(recursive=True)
    assert {grandchild} < {child.pid for child in children}
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=20) != 0
    eventually(lambda: all(gone(child.pid) for child in children))


def test_a_child_dies_with_a_parent_that_was_killed(eventually: Callable[..., object]) -> None:
    script = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from cli import console\n"
        "child = console.start(['sleep', '600'], cwd=Path('.'), env=dict(os.environ), output=None, on_our_death=signal.SIGKILL)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not gone(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    eventually(lambda: gone(child))
