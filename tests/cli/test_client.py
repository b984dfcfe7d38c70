from pathlib import Path

import httpx
import pytest

from cli import client


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "url").write_text("http://127.0.0.1:8642\n")
    (tmp_path / "token").write_text("secret-of-the-data-directory\n")
    return tmp_path


def test_the_plane_of_the_data_directory(data_dir: Path) -> None:
    http = client.connect(data_dir=data_dir, environment={})
    assert str(http.base_url) == "http://127.0.0.1:8642"
    assert http.headers["Authorization"] == "Bearer secret-of-the-data-directory"


def test_the_token_of_the_data_directory_goes_to_no_other_plane(data_dir: Path) -> None:
    with pytest.raises(client.Unreachable, match="LONGYARD_TOKEN"):
        client.connect(data_dir=data_dir, environment={"LONGYARD_URL": "https://elsewhere.example"})


def test_the_environment_names_another_plane(data_dir: Path) -> None:
    environment = {"LONGYARD_URL": "https://elsewhere.example", "LONGYARD_TOKEN": "theirs"}
    http = client.connect(data_dir=data_dir, environment=environment)
    assert str(http.base_url) == "https://elsewhere.example"
    assert http.headers["Authorization"] == "Bearer theirs"


def test_no_plane_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(client.Unreachable, match="longyard up"):
        client.connect(data_dir=tmp_path, environment={})


def test_events_of_a_stream() -> None:
    lines = [
        ": ping",
        "",
        "event: job",
        "id: 7",
        'data: {"status":',
        'data: "running"}',
        "",
        "event: end",
        "data: {}",
        "",
        "data: cut",
    ]
    assert list(client.parse_events(lines)) == [
        client.Message("job", {"status": "running"}, "7"),
        client.Message("end", {}, "7"),
    ]


def test_control_bytes_never_reach_a_terminal() -> None:
    hostile = "a\x1b]0;owned\x07b\x1b[2Jc\rd\x08e\x9bmf\u202eg\ttab"
    for text in (client.printable(hostile), client.colored(hostile)):
        assert not set(text) & set("\x1b\x07\r\x08\x9b\u202e")
        assert text.endswith("g\ttab")


def test_colours_stay_in_logs_only() -> None:
    assert client.colored("\x1b[1;31mred\x1b[0m \x1b[31") == "\x1b[1;31mred\x1b[0m \ufffd[31"
    assert "\x1b" not in client.printable("\x1b[31mred")


def test_a_refusal_that_is_no_problem_json_is_still_told() -> None:
    answer = httpx.Response(502, text="<h1>bad gateway</h1>", request=httpx.Request("GET", "http://x/jobs"))
    with pytest.raises(client.Problem, match="bad gateway") as refusal:
        client.raise_for_problem(answer)
    assert refusal.value.status == 502
