"""What the app says of itself, and whether it keeps to it under made-up requests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api.conftest import Running


@pytest.fixture
def database_url(tmp_path: Path, sqlite_template: Path) -> str:
    path = tmp_path / "data" / "longyard.db"
    path.parent.mkdir()
    shutil.copyfile(sqlite_template, path)
    return f"sqlite:///{path}"


def test_the_document_is_complete(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    operations = {
        operation["operationId"]: operation for item in document["paths"].values() for operation in item.values()
    }
    assert set(operations) == {
        "submit_job", "list_jobs", "get_job", "cancel_job", "list_attempts", "list_events", "list_checkpoints", "list_artifacts",
        "get_artifact", "get_logs", "get_metrics",
        "pause_job", "resume_job", "retry_job", "stream_job", "stream_all",
        "list_hosts", "drain_host", "undrain_host", "cordon_device", "uncordon_device",
        "list_presets", "get_schema", "create_login_code", "login", "logout", "get_health",
        "get_readiness",
    }  # fmt: skip
    for operation in operations.values():
        assert "application/problem+json" in operation["responses"]["401"]["content"]
        assert "HTTPValidationError" not in str(operation)
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "/jobs/{job_id}/metrics" in page.text
    assert "<script" not in page.text


def test_made_up_requests_are_answered_as_documented(server: Running, token: str) -> None:
    """Every operation but the streams, which do not end."""
    headers = {"Authorization": f"Bearer {token}"}
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=headers)
    checks: list[Any] = [
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
        not_a_server_error,
    ]
    tried: list[str] = []
    for found in schema.exclude(path_regex="/stream$|/logout|/logs$").get_all_operations():
        operation: Any = cast("Any", found).ok()
        tried.append(operation.label)

        @settings(
            max_examples=8,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            derandomize=True,
        )
        @given(case=operation.as_strategy())
        def one(case: Any) -> None:
            response = case.call(headers=headers)
            case.validate_response(response, checks=checks)

        one()
    assert len(tried) >= 15


def test_the_api_does_not_import_torch() -> None:
    script = "import api.app, api.__main__, sys; assert not {'torch', 'transformers', 'numpy', 'tokenizers', 'worker'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
