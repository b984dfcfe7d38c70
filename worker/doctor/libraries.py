"""Owns the checks of shared libraries that an Ascend host is known to lack or to load in the wrong order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from worker.doctor.check import Site
from worker.doctor.findings import Finding, Level

LIBRARY_DIRS: Final = ("lib", "lib64", "usr/lib", "usr/lib64", "usr/local/lib", "usr/local/lib64")


def check_libgomp(site: Site) -> Iterator[Finding]:
    """On aarch64 a second copy of libgomp that is loaded late finds no static TLS left, and the import that wanted it fails."""
    if site.machine != "aarch64":
        return
    copies = sorted(site.site_packages.glob("scikit_learn.libs/libgomp*.so*"))
    if copies and "libgomp" not in site.environ.get("LD_PRELOAD", ""):
        yield Finding(
            "libraries",
            Level.WARNING,
            f"scikit-learn brings a libgomp of its own ({copies[0].name}), and none is loaded first",
            "on aarch64 its import can fail: libgomp … cannot allocate memory in static TLS block",
            f"start the worker with: LD_PRELOAD={copies[0]}",
        )


def check_libblas(site: Site) -> Iterator[Finding]:
    """conda's environments lack the libblas.so.3 that libraries of the host ask for by name."""
    if not site.is_ascend or any(_holds(directory) for directory in _directories(site)):
        return
    is_conda = "CONDA_PREFIX" in site.environ
    yield Finding(
        "libraries",
        Level.WARNING,
        "libblas.so.3 is not found",
        "operators that compute on the host fail: libblas.so.3: cannot open shared object file",
        "conda install openblas" if is_conda else "apt-get install libopenblas0, or yum install openblas blas-devel",
    )


def _directories(site: Site) -> Iterator[Path]:
    for name in ("LD_LIBRARY_PATH", "CONDA_PREFIX"):
        for part in filter(None, site.environ.get(name, "").split(":")):
            place = site.root / part.lstrip("/")
            yield place if name == "LD_LIBRARY_PATH" else place / "lib"
    for name in LIBRARY_DIRS:
        yield site.root / name
        yield from (site.root / name).glob("*-linux-gnu*")


def _holds(directory: Path) -> bool:
    return any((directory / name).exists() for name in ("libblas.so.3", "blas/libblas.so.3"))
