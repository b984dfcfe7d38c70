"""Owns which versions of the toolchain a host has, read from files and package metadata, and which of them fit together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

from worker.doctor.check import Site
from worker.doctor.findings import Finding, Level

ROOT: Final = Path("/")
PACKAGES: Final = ("longyard", "torch", "torch_npu", "transformers")
TOOLKIT: Final = Path("usr/local/Ascend/ascend-toolkit/latest")
INSTALL_INFO: Final = Path("etc/Ascend/ascend_cann_install.info")
DRIVER_INFO: Final = Path("usr/local/Ascend/driver/version.info")
VERSION_FILES: Final = ("version.cfg", "runtime/version.info", "compiler/version.info")

CANN_OF: Final[Mapping[str, str]] = {
    "2.12.0": "9.1.0",
    "2.9.0": "8.5.0",
    "2.7.1": "8.3.RC1",
    "2.5.1": "8.1.RC1",
    "2.1.0.post17": "8.3.RC1",
}
"""torch_npu and the CANN that it was built with: the table in the README of Ascend/pytorch."""

_VERSION: Final = re.compile(r"(?im)^\s*\w*version\w*\s*=\s*\[?\D*?(\d[\w.]*)")


def packages() -> dict[str, str]:
    """Of those that matter here, the ones that are installed. Nothing is imported."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cann(root: Path, environ: Mapping[str, str]) -> str | None:
    """Of the toolkit that the environment names, else of the one that was installed."""
    for directory in _toolkits(root, environ):
        for name in VERSION_FILES:
            if (version := _version_in(directory / name)) is not None:
                return version
    return None


def driver(root: Path) -> str | None:
    return _version_in(root / DRIVER_INFO)


def check_torch(site: Site) -> Iterator[Finding]:
    """torch is there, and on an Ascend host its other half, of the same version. What another trainer needs is not known here."""
    if site.settings.trainer_module != "trainer":
        return
    torch, torch_npu = site.packages.get("torch"), site.packages.get("torch_npu")
    if torch is None:
        yield _failure("torch is not installed", "no rank can start without it", "pip install torch==2.13.0")
        return
    if not site.is_ascend:
        return
    wanted = _release(torch)
    if torch_npu is None:
        why = "without torch_npu, torch sees no NPU"
        yield _failure("torch_npu is not installed", why, f"pip install torch-npu=={wanted}")
    elif not re.match(rf"{re.escape(wanted)}(\.post\d+|rc\d+)?$", _release(torch_npu)):
        why = "torch_npu is built for exactly one torch: another one fails at its import, or crashes later"
        yield _failure(f"torch_npu {torch_npu} does not fit torch {torch}", why, f"pip install torch-npu=={wanted}")


def check_cann(site: Site) -> Iterator[Finding]:
    """CANN is there, no older than torch_npu wants it, and in the environment."""
    if not site.is_ascend:
        return
    version = cann(site.root, site.environ)
    if version is None:
        why = "torch_npu is a layer over CANN's libraries"
        yield _failure(f"CANN is not found below /{TOOLKIT}", why, "install the CANN toolkit and its kernels package")
        return
    torch_npu = site.packages.get("torch_npu")
    if torch_npu is not None and (wanted := _cann_for(_release(torch_npu))) and _key(version) < _key(wanted):
        why = f"torch_npu {torch_npu} was built with CANN {wanted}, and an older one lacks what it calls"
        yield _failure(f"CANN is {version}", why, f"install CANN {wanted} or later, or the torch_npu of CANN {version}")
    if not any(name in site.environ for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")):
        why = "torch_npu does not find CANN's libraries, and fails at its import"
        fix = f"start the worker after: source /{TOOLKIT.parent}/set_env.sh"
        yield _failure("CANN's environment is not set", why, fix)


def check_driver(site: Site) -> Iterator[Finding]:
    if not site.is_ascend:
        return
    version, told = driver(site.root), site.report.version if site.report else None
    if version is None:
        why = "the runtime reaches the cards through the driver's libraries"
        fix = "install the driver; in a container, mount /usr/local/Ascend/driver"
        yield _failure(f"the driver is not found: there is no /{DRIVER_INFO}", why, fix)
    elif told is not None and _key(told) != _key(version):
        why = "npu-smi and the runtime may not agree on what the cards do"
        fix = "install driver and npu-smi from one package; in a container, mount both from the host"
        what = f"npu-smi is of driver {told}, and the driver is {version}"
        yield Finding("versions", Level.WARNING, what, why, fix)


def _failure(what: str, why: str, fix: str) -> Finding:
    return Finding("versions", Level.FAILURE, what, why, fix, dooms_jobs=True)


def _toolkits(root: Path, environ: Mapping[str, str]) -> Iterator[Path]:
    for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"):
        if environ.get(name):
            yield root / environ[name].lstrip("/")
    yield root / TOOLKIT
    try:
        lines = (root / INSTALL_INFO).read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    for value in (line.partition("=")[2].strip() for line in lines):
        if value.startswith("/"):
            place = root / value.lstrip("/")
            yield from (place, place / "latest", place / "ascend-toolkit" / "latest")


def _version_in(path: Path) -> str | None:
    try:
        found = _VERSION.search(path.read_text("utf-8", "replace"))
    except OSError:
        return None
    return found[1] if found else None


def _cann_for(torch_npu: str) -> str | None:
    """Of the newest known one that is no newer."""
    known = [version for version in CANN_OF if _key(version) <= _key(torch_npu)]
    return CANN_OF[max(known, key=_key)] if known else None


def _release(version: str) -> str:
    return version.partition("+")[0]


def _key(version: str) -> tuple[tuple[int, int], ...]:
    """Sorts 8.3.RC1 before 8.3.0, and 2.1.0 before 2.1.0.post17."""
    parts = re.findall(r"(\d+)|(rc)(\d+)|(post)(\d+)", version.lower())
    key: list[tuple[int, int]] = []
    for number, rc, rc_number, post, post_number in parts:
        if rc:
            key.append((0, int(rc_number)))
        elif post:
            key.append((2, int(post_number)))
        else:
            key.append((1, int(number)))
    return tuple(key)
