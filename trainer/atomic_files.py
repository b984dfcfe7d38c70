"""Owns what it takes for written files to outlast a power cut. Must not import torch."""

import os
import shutil
from pathlib import Path


def publish(temporary: Path, target: Path) -> None:
    """Gives a file, or a directory of files, its name once all of it is on the disk: whoever finds it finds it whole.

    A directory that has the name already is replaced.
    """
    if temporary.is_dir():
        for path in temporary.iterdir():
            sync(path)
    sync(temporary)
    if target.is_dir():
        shutil.rmtree(target)
    temporary.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Waits until a file's content, or a directory's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
