"""A client that remembers every promise: what was answered with 2xx must stay true (K4). It comes back when the API is away."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from store.settings import Settings

PATIENCE_S = 60.0
TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
Json = dict[str, Any]


@dataclass
class Promises:
    """By job id: the spec of each submission that was answered with 201, what was asked of it, and the end that was told."""

    submitted: dict[str, Json] = field(default_factory=dict[str, Json])
    keys: dict[str, str] = field(default_factory=dict[str, str])
    cancelled: set[str] = field(default_factory=set[str])
    ended: dict[str, str] = field(default_factory=dict[str, str])


class Client:
    """Finds the API by the address it writes down; every call is repeated until it is answered, POSTs of jobs under one key."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._http = httpx.Client(timeout=30.0, trust_env=False)
        self.promises = Promises()

    def submit(self, spec: Json, *, key: str | None = None) -> str:
        """The job's id, from a 2xx."""
        key = key or uuid.uuid4().hex
        answer = self._patiently("POST", "/jobs", json=spec, headers={"Idempotency-Key": key})
        assert answer.status_code in (200, 201), answer.text
        job_id = answer.json()["id"]
        self.promised(key, job_id, spec)
        return job_id

    def promised(self, key: str, job_id: str, spec: Json) -> None:
        assert self.promises.keys.setdefault(key, job_id) == job_id, "one key, two jobs"
        self.promises.submitted[job_id] = spec

    def ask(self, job_id: str, wish: str) -> bool:
        """cancel, pause, resume or retry. False where the job's status does not allow it (409)."""
        answer = self._patiently("POST", f"/jobs/{job_id}/{wish}")
        assert answer.status_code in (202, 409), answer.text
        if wish == "cancel" and answer.status_code == 202:
            self.promises.cancelled.add(job_id)
        elif wish == "retry" and answer.status_code == 202:
            self.promises.cancelled.discard(job_id)
            self.promises.ended.pop(job_id, None)
        return answer.status_code == 202

    def job(self, job_id: str) -> Json:
        job = self.get(f"/jobs/{job_id}")
        if job["status"] in TERMINAL:
            told = self.promises.ended.setdefault(job_id, job["status"])
            assert told == job["status"], f"{job_id} was {told}, and is {job['status']} now"
        return job

    def status(self, job_id: str) -> str:
        return self.job(job_id)["status"]

    def events(self, job_id: str) -> list[Json]:
        return self._all(f"/jobs/{job_id}/events")

    def kinds(self, job_id: str) -> list[str]:
        return [event["kind"] for event in self.events(job_id)]

    def attempts(self, job_id: str) -> list[Json]:
        return self.get(f"/jobs/{job_id}/attempts")["data"]

    def hosts(self) -> list[Json]:
        return self.get("/hosts")["data"]

    def log(self, job_id: str, *, attempt: int | None = None, rank: int = 0) -> str:
        """All of one rank's log as the API tells it; empty before the first attempt."""
        return "".join(text for _, _, text in self.log_pages(job_id, attempt=attempt, rank=rank))

    def log_pages(self, job_id: str, *, attempt: int | None = None, rank: int = 0) -> Iterator[tuple[int, int, str]]:
        """As many answers as it takes: the bytes each is of, from and to, and its text."""
        offset = 0
        while True:
            query = {"rank": rank, "offset": offset} | ({} if attempt is None else {"attempt": attempt})
            answer = self._patiently("GET", f"/jobs/{job_id}/logs", params=query)
            if answer.status_code == 404:
                return
            assert answer.status_code == 200, answer.text
            start, end = (int(answer.headers[f"Longyard-Log-{name}"]) for name in ("Offset", "End"))
            if end <= offset:
                return
            yield start, end, answer.text
            offset = end

    def series(self, job_id: str, name: str) -> dict[int, dict[int, float | None]]:
        """One metric by attempt and step."""
        found = self.get(f"/jobs/{job_id}/metrics?names={name}&max_points=2000")
        assert not found["truncated"], "more points than an answer holds"
        return {one["attempt"]: {point[0]: point[1] for point in one["points"]} for one in found["series"]}

    def get(self, path: str) -> Json:
        answer = self._patiently("GET", path)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def once(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Raises httpx.TransportError or OSError where nobody answers."""
        url = self._settings.url_file.read_text("utf-8").strip()
        token = self._settings.token_file.read_text("utf-8").strip()
        headers = {"Authorization": f"Bearer {token}", **more.pop("headers", {})}
        return self._http.request(method, f"{url}{path}", headers=headers, **more)

    def is_answered(self) -> bool:
        try:
            return self.once("GET", "/readyz").status_code == 200
        except (httpx.TransportError, OSError):
            return False

    def close(self) -> None:
        self._http.close()

    def _all(self, path: str) -> list[Json]:
        rows: list[Json] = []
        after = ""
        while True:
            page = self.get(f"{path}?limit=1000{after}")
            rows += page["data"]
            if not page["has_more"]:
                return rows
            after = f"&after={page['next']}"

    def _patiently(self, method: str, path: str, **more: Any) -> httpx.Response:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = self.once(method, path, **more)
                if answer.status_code != 503:
                    return answer
                assert answer.headers["Retry-After"], "a 503 without Retry-After"
                problem = answer.text
            except (httpx.TransportError, OSError) as error:
                problem = repr(error)
            assert time.monotonic() < deadline, f"{method} {path} is not answered: {problem}"
            time.sleep(0.02)
