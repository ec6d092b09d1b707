"""Random requests to the documents' routes, by our own OpenAPI document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from kb_models import kb_server, make_home
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)


@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
def test_random_requests_by_our_own_document(mode: Any, tmp_path: Path) -> None:
    """Whatever the document allows or forbids: no fault of the server, and every answer as the document says."""
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    settings = hypothesis.settings(
        max_examples=4,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )

    def check(case: Any) -> None:
        if mode is schemathesis.GenerationMode.POSITIVE:
            for given in (case.query, case.body):
                if isinstance(given, dict) and "collection" in given:
                    given["collection"] = "default"
            for name in ("document", "chunk", "page"):
                if name in (case.path_parameters or {}):
                    case.path_parameters[name] = 1
        case.call_and_validate(checks=checks, timeout=20)

    with kb_server(make_home(tmp_path), request_seconds=15) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        tried = []
        for result in schema.get_all_operations():
            operation = result.ok()
            if mode is schemathesis.GenerationMode.NEGATIVE and operation.method.upper() in ("GET", "DELETE"):
                continue
            settings(hypothesis.given(case=operation.as_strategy(generation_mode=mode))(check))()
            tried.append(operation.path)
        assert len(tried) >= 8, tried
