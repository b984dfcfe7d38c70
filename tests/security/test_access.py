"""Who may call what: every route, every spelling of it, from a program and from a browser."""

from __future__ import annotations

import http.client
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import httpx
import pytest
from starlette.routing import BaseRoute

from api.app import create_app
from api.auth import OPEN
from store import jobs, tokens
from store.db import Database
from store.jobs import NewJob
from tests.api.conftest import Running, anyone, client, plain_logs, server, token

__all__ = ["anyone", "client", "plain_logs", "server", "token"]

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
ID = "0193a7b2-0000-7000-8000-000000000000"


@pytest.fixture
def database_url(tmp_path: Path, sqlite_template: Path) -> str:
    path = tmp_path / "data" / "longyard.db"
    path.parent.mkdir()
    shutil.copyfile(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def browser(server: Running, client: httpx.Client) -> Iterator[httpx.Client]:
    """Signed in by a one-time link, as a page of ours sends requests."""
    code = client.post("/login-codes").json()["code"]
    with httpx.Client(base_url=server.url, headers={"Sec-Fetch-Site": "same-origin", "Origin": server.url}) as browser:
        assert browser.post("/login", json={"code": code}).status_code == 204
        yield browser


def routes_of(routes: list[BaseRoute]) -> Iterator[str]:
    for route in routes:
        yield getattr(route, "path", "")
        yield from routes_of(getattr(route, "routes", None) or [])


def is_open(method: str, path: str) -> bool:
    return any(method in methods and pattern.fullmatch(path) for methods, pattern in OPEN)


def spellings(path: str) -> set[str]:
    return {
        path, path + "/", "/" + path, path + ";x", path + "?x=1", path + "%00", path.upper(), path + "/.", path + "/..;/", "/." + path,
        path.replace("/", "//", 1), path.replace("/", "/%2e/", 1), path.replace("s", "%73", 1), "/ui/assets/.." + path, "/ui/login" + path,
        "/ui/assets/%2e%2e" + path, "/healthz/.." + path, "/healthz" + path, "/login" + path,
    }  # fmt: skip


def raw(connection: http.client.HTTPConnection, method: str, path: str) -> tuple[int, str]:
    """Status and challenge for the path as it is written: a better client would tidy it up."""
    connection.request(method, path)
    answer = connection.getresponse()
    answer.read()
    return answer.status, answer.headers.get("www-authenticate", "")


def test_every_route_in_every_spelling_needs_credentials(server: Running) -> None:
    app = create_app(server.plane.settings)
    known = (
        *routes_of(list(app.routes)),
        *app.openapi()["paths"],
        "/metrics",
        "/nothing",
        "/",
        "/ui/",
        "/docs",
        "/redoc",
    )
    paths = {re.sub(r"\{[^}]*\}", ID, path) for path in known if path}
    address = httpx.URL(server.url)
    connection = http.client.HTTPConnection(address.host, address.port or 0, timeout=20)
    refused = 0
    for path in sorted(paths):
        for spelling in spellings(path):
            for method in METHODS if spelling == path else ("GET", "POST"):
                status, challenge = raw(connection, method, spelling)
                if is_open(method, unquote(spelling.partition("?")[0])):
                    assert status != 401 or method == "POST"
                    continue
                assert status == 401, (method, spelling)
                assert challenge.startswith("Bearer")
                refused += 1
    connection.close()
    assert len(paths) > 20
    assert refused > 800


def test_what_is_open_is_what_is_said(anyone: httpx.Client) -> None:
    assert anyone.get("/healthz").status_code == 200
    assert anyone.get("/ui/login").status_code == 200
    assert anyone.get("/ui/assets/nothing.js").status_code == 404
    assert anyone.get("/ui/assets/..%2findex.html").status_code == 401
    assert anyone.post("/login", json={"code": "x"}).status_code == 401
    assert len(OPEN) == 4


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer x", "Basic YWRtaW46", "bearer " + "x" * 5000, "Bearer a b", "Token x"],
)
def test_wrong_credentials_are_401(anyone: httpx.Client, authorization: str) -> None:
    answer = anyone.get("/jobs", headers={"Authorization": authorization})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


def test_each_secret_serves_its_purpose_only(server: Running, database: Database, token: str) -> None:
    with database.write() as session:
        code = tokens.mint(session, kind="login_code", owner="admin", scope="admin", expires_in_s=60)
        cookie = tokens.mint(session, kind="session", owner="admin", scope="admin", expires_in_s=60)
        old = tokens.mint(session, kind="token", owner="admin", scope="admin", expires_in_s=-1)
    with httpx.Client(base_url=server.url) as plain:
        for secret in (code, cookie, old):
            assert plain.get("/jobs", headers={"Authorization": f"Bearer {secret}"}).status_code == 401
        for secret in (code, token, old):
            assert plain.get("/jobs", headers={"Cookie": f"longyard_session={secret}"}).status_code == 401
        for body in ({"code": cookie}, {"code": token}, {"token": code}, {"token": cookie}):
            assert plain.post("/login", json=body).status_code == 401
        assert plain.post("/login", json={"token": token}).status_code == 204


def test_a_code_works_once_and_the_cookie_is_closed_to_scripts_and_sites(
    anyone: httpx.Client, client: httpx.Client
) -> None:
    made = client.post("/login-codes")
    assert made.status_code == 201
    assert made.json()["path"] == f"/ui/login#{made.json()['code']}"
    answer = anyone.post("/login", json={"code": made.json()["code"]})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "path=/" in cookie
    assert anyone.post("/login", json={"code": made.json()["code"]}).status_code == 401


def test_signing_in_wants_exactly_one_credential(anyone: httpx.Client) -> None:
    for body in ({}, {"code": "a", "token": "b"}, {"code": None}, {"code": 1}, {"passwd": "x"}):
        assert anyone.post("/login", json=body).status_code == 422


def test_a_session_ends_when_it_is_signed_out(browser: httpx.Client) -> None:
    kept = browser.cookies["longyard_session"]
    assert browser.get("/jobs").status_code == 200
    assert browser.post("/logout").status_code == 204
    browser.cookies.set("longyard_session", kept)
    assert browser.get("/jobs").status_code == 401


def test_a_session_makes_no_further_codes(browser: httpx.Client) -> None:
    assert browser.post("/login-codes").status_code == 403


def test_failed_sign_ins_are_slowed(anyone: httpx.Client, client: httpx.Client) -> None:
    statuses = [anyone.post("/login", json={"code": f"guess {number}"}).status_code for number in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    answer = anyone.post("/login", json={"code": client.post("/login-codes").json()["code"]})
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 61


def test_under_a_cookie_only_our_own_pages_change_anything(browser: httpx.Client, server: Running) -> None:
    path = f"/jobs/{ID}/cancel"
    assert browser.post(path).status_code == 404
    for name, value in (
        ("Origin", "http://evil.example"),
        ("Origin", "null"),
        ("Origin", server.url.replace("http://", "http://evil.")),
        ("Origin", server.url + "0"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
        ("Sec-Fetch-Site", "none"),
    ):
        answer = browser.post(path, headers={name: value})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), value
    with httpx.Client(base_url=server.url, cookies=browser.cookies) as bare:
        assert bare.post(path).status_code == 403
        assert bare.get("/jobs").status_code == 200
        assert bare.post(path, headers={"Origin": server.url}).status_code == 404


def test_a_foreign_page_cannot_use_a_token_or_sign_in(client: httpx.Client, anyone: httpx.Client) -> None:
    foreign = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert client.post(f"/jobs/{ID}/cancel", headers=foreign).status_code == 403
    assert anyone.post("/login", json={"code": "x"}, headers=foreign).status_code == 403
    preflight = client.request("OPTIONS", "/jobs", headers=foreign | {"Access-Control-Request-Method": "POST"})
    assert "access-control-allow-origin" not in preflight.headers


@pytest.mark.parametrize("path", ["/jobs", "/healthz", "/ui/login", "/stream", "/nothing"])
def test_other_names_for_this_server_are_refused(client: httpx.Client, path: str) -> None:
    for name in (
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "localhost.evil",
        "",
        "[::1",
        "127.0.0.1:80:80",
    ):
        answer = client.get(path, headers={"Host": name})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_host"), name
    assert client.get("/healthz", headers={"Host": "LOCALHOST:1"}).status_code == 200
    assert client.get("/healthz", headers={"Host": "[::1]:8642"}).status_code == 200


def test_only_json_is_read(client: httpx.Client) -> None:
    for content_type in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "",
    ):
        answer = client.post("/jobs", content=b'{"preset": "demo"}', headers={"Content-Type": content_type})
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type"), content_type
    assert client.post(f"/jobs/{ID}/cancel", headers={"Content-Type": "text/plain"}).status_code == 415
    answer = client.post("/jobs", content=b"{}", headers={"Content-Type": "application/json; charset=utf-8"})
    assert answer.status_code == 422


def test_a_body_that_trickles_in_is_given_up(server: Running, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.auth.BODY_TIMEOUT_S", 0.3)
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 0), timeout=10) as slow:
        head = f"POST /jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        slow.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        assert slow.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_every_answer_carries_the_headers_that_close_it_off(client: httpx.Client, anyone: httpx.Client) -> None:
    answers = [
        client.get("/jobs"), anyone.get("/jobs"), client.get("/nothing"), client.put("/jobs"), client.post("/jobs", json={}),
        client.get("/docs"),
        anyone.get("/ui/login"), client.get("/ui/"), anyone.get("/jobs", headers={"Host": "evil"}), anyone.get("/ui/assets/x.js"),
    ]  # fmt: skip
    assert [answer.status_code for answer in answers] == [200, 401, 404, 405, 422, 200, 200, 200, 400, 404]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in answer.headers
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_a_person_without_a_session_is_shown_where_to_sign_in(anyone: httpx.Client) -> None:
    for path in ("/", "/ui/", "/ui/jobs/x"):
        answer = anyone.get(path, headers={"Accept": "text/html"})
        assert (answer.status_code, answer.headers["content-type"]) == (401, "text/html; charset=utf-8")
    assert anyone.get("/jobs", headers={"Accept": "text/html"}).headers["content-type"] == "application/problem+json"


def test_a_bug_is_told_without_its_insides(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a secret at /a/server/path")

    monkeypatch.setattr("api.routes.hosts.hosts.all_hosts", broken)
    answer = client.get("/hosts")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert "path" not in answer.json()["detail"]
    assert answer.json()["request_id"]
    assert "content-security-policy" in answer.headers


def test_another_owners_job_is_as_if_it_were_not_there(
    server: Running, database: Database, client: httpx.Client
) -> None:
    with database.write() as session:
        theirs = jobs.submit(session, NewJob("x", "demo", {}, 1, "cpu"), owner="admin")[0].id
        secret = tokens.mint(session, kind="token", owner="eve", scope="user")
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {secret}"}) as eve:
        assert eve.get("/jobs").json()["data"] == []
        assert eve.get("/jobs", params={"owner": "admin"}).json()["data"] == []
        for rest in ("", "/logs", "/metrics", "/events", "/attempts", "/checkpoints", "/stream"):
            other, random = eve.get(f"/jobs/{theirs}{rest}"), eve.get(f"/jobs/{ID}{rest}")
            assert other.status_code == random.status_code == 404
            assert other.json() | {"request_id": ""} == random.json() | {"request_id": ""}
        assert eve.post(f"/jobs/{theirs}/cancel").status_code == 404
    assert client.get(f"/jobs/{theirs}").json()["status"] == "queued"
