"""Owns `longyard convert`: weights in an old pickle become model.safetensors, on their owner's machine.

The pickle is opened in a process of its own, with torch's restricted unpickler, bounded in memory and time, and with an
empty environment.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

from trainer import atomic_files

INDEX = "pytorch_model.bin.index.json"
SINGLE = "pytorch_model.bin"
TARGET = "model.safetensors"

MAX_INDEX_BYTES = 16 << 20
MAX_CPU_S = 3600
# torch maps its libraries and the file as well, so the bound is generous; what it stops is a bomb, not a model.
SPARE_BYTES = 32 << 30


class ConvertError(Exception):
    """The directory cannot be converted; the message says why and what to do."""


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="longyard convert", description="Turn DIR/pytorch_model.bin into DIR/model.safetensors."
    )
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    try:
        if options.inside:
            print(json.dumps(_convert(options.directory, pickles(options.directory))))
        else:
            print(convert(options.directory))
    except ConvertError as error:
        print(f"convert: {error}", file=sys.stderr)
        return 1
    return 0


def convert(directory: Path) -> str:
    """Write model.safetensors beside the pickle, which stays. Returns a sentence. Raises ConvertError."""
    found = pickles(directory)
    size = sum(path.stat().st_size for path in found)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "trainer.convert_weights", "--inside", str(directory.resolve())],
        env={"PATH": os.defpath, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: _limit(size),
        check=False,
    )
    if done.returncode < 0:
        raise ConvertError(f"the process that read the pickle was ended by signal {-done.returncode}")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise ConvertError(lines[-1].removeprefix("convert: "))
    told = cast(dict[str, int], json.loads(done.stdout))
    return f"{directory / TARGET}: {told['tensors']:,} tensors, {told['weights']:,} weights"


def pickles(directory: Path) -> list[Path]:
    """The pickle, or all its shards. Raises ConvertError where there is none, or the weights are safetensors already."""
    if not directory.is_dir():
        raise ConvertError(f"{directory} is not a directory")
    if (directory / TARGET).exists():
        raise ConvertError(f"{directory / TARGET} is there already; move it away to convert again")
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    if not (directory / INDEX).is_file():
        raise ConvertError(f"{directory} holds no {SINGLE}")
    names = _shards(directory / INDEX)
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise ConvertError(f"{INDEX} names {missing[0]}, which is not there")
    return [directory / name for name in names]


def _shards(index: Path) -> list[str]:
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise ConvertError(f"{INDEX} is larger than {MAX_INDEX_BYTES >> 20} MiB, so it is no index")
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConvertError(f"{INDEX} is not an index of weights") from None
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise ConvertError(f"{INDEX} names files outside its directory")
    return names


def _limit(size_bytes: int) -> None:
    memory_bytes = 4 * size_bytes + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Weights can grow by unsharing tied ones, at most to as much again.
    file_bytes = 2 * size_bytes + (1 << 20)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))


def _convert(directory: Path, found: list[Path]) -> dict[str, int]:
    """In the limited process. Tensors that share memory are written each on its own; loading ties them again."""
    import torch
    from safetensors.torch import save_file

    weights: dict[str, torch.Tensor] = {}
    for path in found:
        for name, value in _open(path).items():
            if not isinstance(name, str) or not isinstance(value, torch.Tensor):
                raise ConvertError(f"{path.name} holds {name!r}, which is no tensor: not a model's weights")
            if name in weights:
                raise ConvertError(f"{name} is in two shards")
            weights[name] = value.detach().clone().contiguous()
    temporary = directory / f"{TARGET}.tmp"
    save_file(weights, temporary, metadata={"format": "pt"})
    atomic_files.publish(temporary, directory / TARGET)
    return {"tensors": len(weights), "weights": sum(value.numel() for value in weights.values())}


def _open(path: Path) -> dict[Any, Any]:
    import pickle

    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ConvertError(
            f"{path.name} wants to run code or build objects other than tensors; it was not loaded"
        ) from None
    except (RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise ConvertError(f"{path.name} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(loaded, dict):
        raise ConvertError(f"{path.name} holds a {type(loaded).__name__}, not a model's weights")
    return cast(dict[Any, Any], loaded)


if __name__ == "__main__":
    sys.exit(main())
