"""One rank's entry: `python -m trainer --config FILE`, by hand, under torchrun, or under a supervisor.

Everything a rank knows comes from that file, and from torch.distributed's environment. Its directory is where the
rank writes. How it ended is its exit code: see trainer/errors.py.
"""

import argparse
import os
import sys
import traceback
from pathlib import Path

from trainer import dist_env, signals, stacks
from trainer.startup_timer import StartUp


def main(argv: list[str] | None = None) -> int:
    """Runs one rank and returns its exit code."""
    startup = StartUp()
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Trains a Longformer: one rank.")
    parser.add_argument("--config", type=Path, required=True, help="config.json; its directory takes the output")
    given: Path = parser.parse_args(argv).config
    # What is reported names files by their whole paths.
    path = given.absolute()
    if not path.is_file():
        sys.stderr.write(f"--config: {path} is not a file\n")
        return 2
    wish = signals.listen()
    try:
        stacks.listen(path.parent, dist_env.here().rank)
        return _train(path, wish, startup)
    # The process's edge: whatever it was, tokenizers' panics past Exception included, is told by file and exit code.
    except BaseException as error:  # noqa: BLE001
        return _tell(error, path.parent, step=None)


def _train(path: Path, wish: signals.StopWish, startup: StartUp) -> int:
    from trainer.errors import BadInput
    from trainer.spec.config import RunConfig, check_inputs

    config = RunConfig.model_validate_json(path.read_bytes())
    problems = check_inputs(config, allow_network=config.allow_network)
    if problems:
        raise BadInput("; ".join(f"{problem.field}: {problem.message}" for problem in problems))
    _prepare_libraries(config.allow_network)
    here = dist_env.here()
    if config.cpu_affinity:
        # Before numpy and torch are there: their threads keep the cores they were started with.
        dist_env.keep_to_share(here)
    # Imported here so that a signal during these seconds finds somebody listening.
    from trainer import device, loop
    from trainer.report import Reporter

    startup.passed("imports")
    with Reporter(path.parent, here, startup) as reporter:
        try:
            rank = device.join(config, here)
            reporter.passed("join")
            loop.run(config, path.parent, rank, reporter, wish)
            rank.leave()
        except BaseException as error:  # noqa: BLE001
            return _tell(error, path.parent, step=reporter.step)
    return 0


def _tell(error: BaseException, directory: Path, *, step: int | None) -> int:
    from trainer.errors import Stopped, TrainerError, classify
    from trainer.report import write_error

    _, code = classify(error)
    if isinstance(error, TrainerError):
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    else:
        traceback.print_exception(error)
    if not isinstance(error, Stopped):
        try:
            write_error(directory, dist_env.here().rank, error, step=step)
        except OSError as problem:
            sys.stderr.write(f"r{dist_env.here().rank}.error.json could not be written: {problem}\n")
    return code


def _prepare_libraries(allow_network: bool) -> None:
    # Hugging Face's libraries read these when they are imported.
    if not allow_network:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    # An installed torch_npu without CANN would break `import torch`; device.py imports it where it is wanted.
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    # The tokenizer works in threads before any loader worker is forked, and never in one.
    os.environ["TOKENIZERS_PARALLELISM"] = "true"


def _leave(code: int) -> None:
    """Ends at once: a lost peer can leave threads of the backend that would wait for it at a normal exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _leave(main())
