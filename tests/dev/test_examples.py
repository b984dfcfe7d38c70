"""The demo's corpus and tokenizer: what an interruption left half made is made again."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples import build

FILES = [*(f"corpus/{name}" for name in build.CORPUS_FILES), *(f"lf_token/{name}" for name in build.TOKENIZER_FILES)]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole set, from a text of the test's own."""

    def texts() -> Iterator[str]:
        yield "\n\n".join(
            f"Paragraph {number} is one of the forty that this little corpus has." for number in range(40)
        )

    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setattr(build, "CORPUS", tmp_path / "corpus")
    monkeypatch.setattr(build, "TOKENIZER", tmp_path / "lf_token")
    monkeypatch.setattr(build, "_texts", texts)
    build.main()
    assert build.is_whole()
    return tmp_path


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_there_is_made_again(made: Path, name: str) -> None:
    before = contents(made)
    (made / name).unlink()
    assert not build.is_whole()
    build.main()
    assert contents(made) == before
    assert sorted(before) == sorted(FILES)


@pytest.mark.parametrize("name", ["lf_token/vocab.json", "lf_token/config.json", "lf_token/merges.txt", FILES[0]])
def test_a_file_that_was_cut_short_is_made_again(made: Path, name: str) -> None:
    before = contents(made)
    with open(made / name, "r+b") as file:
        file.truncate(10 if name.endswith(".json") else 0)
    assert not build.is_whole()
    build.main()
    assert contents(made) == before


def test_what_is_whole_is_left_alone(made: Path) -> None:
    written = {name: (made / name).stat().st_mtime_ns for name in FILES}
    build.main()
    assert {name: (made / name).stat().st_mtime_ns for name in FILES} == written


def test_a_new_set_that_is_not_finished_does_not_pass_for_whole(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (made / "lf_token" / "merges.txt").unlink()
    real = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == "vocab.json":
            raise OSError("no space left")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        build.main()
    assert not build.is_whole()
