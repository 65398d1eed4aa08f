"""Every endpoint fuzzed from its own OpenAPI document: no 5xx, no panic, only what is documented."""

import json
import subprocess
import sys

import hoststate
import pytest
from harness import ROOT
from harness.forward import Forward

# An image source that names a Glance which is none is a 502 on purpose.
CONFIG = """
[[operations]]
include-path = "/v1/images/{id}"
include-method = "PUT"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", 502]

[[operations]]
include-path = "/v1/images/inspect"
include-method = "POST"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", 502]
"""
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.fixture
def forward(service):
    forward = Forward(service.socket)
    yield forward
    forward.close()


def test_the_kept_document_is_the_services(service):
    kept = json.loads((ROOT / "openapi/berth-v1.json").read_text())
    assert service.client.get("/v1/openapi.json") == kept, "run `make openapi`"


def test_schemathesis_finds_nothing(service, busybox, forward, tmp_path):
    before = hoststate.snapshot(service.scope())
    url = f"http://127.0.0.1:{forward.port}"
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    # The stream of events has no end to wait for.
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(config),
        "run", f"{url}/v1/openapi.json", "--url", url,
        "--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--max-examples", "40",
        "--mode", "all", "--exclude-path", "/v1/events", "--request-timeout", "20",
        "--generation-database", "none", "--continue-on-failure", "--no-color",
        "--report", "junit", "--report-dir", str(tmp_path),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    log = service.log.read_text(errors="replace")
    assert "panicked" not in log, log[-3000:]
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert "generated" in result.stdout
    service.delete_everything()
    service.client.get("/v1/host")
    assert hoststate.difference(before, hoststate.snapshot(service.scope())) == []
