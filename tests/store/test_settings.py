from __future__ import annotations

from pathlib import Path

import pytest

from store.errors import BadSettings
from store.settings import MAX_UNIX_PATH_BYTES, Settings, load


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LONGYARD_PORT", "abc"),
        ("LONGYARD_PORT", "70000"),
        ("LONGYARD_DEVICES", "cpu:0"),
        ("LONGYARD_HOST_NAME", "a b"),
        ("LONGYARD_STOP_GRACE_S", "x"),
        ("LONGYARD_TRAINER_MODULE", "os; rm"),
        ("LONGYARD_QUOTAS", "ada"),
        ("LONGYARD_QUOTAS", "ada=-1"),
        ("LONGYARD_WEIGHTS", "ada=0"),
    ],
)
def test_a_value_that_cannot_be_is_told_by_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(BadSettings) as caught:
        load()
    assert str(caught.value).startswith(f"{name}={value}: ")
    assert "\n" not in str(caught.value)


def test_data_roots_are_absolute_and_many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGYARD_DATA_ROOTS", "/data:here:")
    assert load().data_roots == (Path("/data"), tmp_path / "here")


def test_a_socket_path_fits_however_long_the_directory_is(tmp_path: Path) -> None:
    short, long = Settings(data_dir=tmp_path), Settings(data_dir=tmp_path / ("long" * 40))
    assert short.broker_socket == tmp_path / "valkey.sock"
    assert len(bytes(long.broker_socket)) <= MAX_UNIX_PATH_BYTES
    assert long.broker_socket == Settings(data_dir=tmp_path / ("long" * 40)).broker_socket


def test_quotas_and_weights_are_told_by_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGYARD_QUOTAS", "ada=16, *=8")
    monkeypatch.setenv("LONGYARD_WEIGHTS", "ada=2.5")
    settings = load()
    assert (settings.quotas, settings.weights) == ({"ada": 16, "*": 8}, {"ada": 2.5})
    monkeypatch.setenv("LONGYARD_QUOTAS", "")
    assert load().quotas == {}
