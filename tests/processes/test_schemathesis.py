"""The document at `/schema` against the node that serves it: thousands of requests made from it, valid and not.

Everything the document describes is exercised, in JSON, msgpack and forms: no operation is left out. The node is the
test's own, so namespaces, rows and the level of its log may become whatever the requests make of them.

Of each answer all is checked: no 5xx but the documented 503 and 507, the one error shape, documented status codes,
content types, headers and schemas, 405 with `Allow` for methods that are not there, valid requests accepted, invalid
ones refused. The only exceptions, each in `schema_checks` where it is made:

- A valid request may be refused for what only the node knows (`KNOWN_ONLY_TO_THE_NODE`): the dimension of a namespace
  that exists, features that are not enabled, sizes in bytes, limits over a whole filter.
- An invalid request may be answered when its only fault is a header nobody has heard of: those cannot be refused.
- `/vectors/batch`, `/vectors/fetch` and `/vectors/delete` are also rows of these names, so their `Allow` names more
  than their own entry.
- The web server refuses a URL or headers beyond its limits (414, 431) before the node sees them, without a body.

Where schemathesis fills `X-MLVDB-Min-Seq` with `0`, which its pattern does not allow and every request would be
refused for, a value of the right form is sent; `min_seq` in the query, read by the same code, is varied. Left out are
the checks of authentication (a node without keys has none; see `tests/api/test_access.py`) and those over several
requests (`use_after_free` and its like): a deleted id may be written again at any time.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes.node import ROOT, NodeProcess

SEED = 20250101
CHECKS = (
    "not_a_server_error",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "missing_required_header",
    "unsupported_method",
    "answers_are_documented",
    "one_error_shape",
    "valid_requests_are_accepted",
    "invalid_requests_are_refused",
    "allow_names_the_methods",
)
CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 503, 507]
"""


@pytest.mark.timeout(180)
def test_the_node_is_what_its_schema_says(shared_node: NodeProcess, tmp_path: Path) -> None:
    _run(shared_node, tmp_path, examples=8, seed=SEED, limit_s=170)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_node_is_what_its_schema_says_at_length(shared_node: NodeProcess, tmp_path: Path) -> None:
    _run(shared_node, tmp_path, examples=100, seed=SEED + 1, limit_s=880)


def _run(node: NodeProcess, directory: Path, *, examples: int, seed: int, limit_s: float) -> None:
    """Run schemathesis with its examples, edge cases and random data; fail with what it reports."""
    config = directory / "schemathesis.toml"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "--no-color", "run"]
    command += [f"{node.base_url}/schema", f"--checks={','.join(CHECKS)}", "--phases=examples,coverage,fuzzing"]
    command += [f"--max-examples={examples}", f"--seed={seed}", "--generation-database=none", "--request-timeout=10"]
    command += ["--continue-on-failure", "--suppress-health-check=all"]

    finished = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.processes.schema_checks"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit_s,
    )

    report = finished.stdout + finished.stderr
    assert finished.returncode == 0, report
    counts = re.search(r"Selected: (\d+)/(\d+)\s+Tested: (\d+)", report)
    assert counts is not None, report
    assert counts[1] == counts[2] == counts[3], "operations were left out:\n" + report
    assert node.get("/health").json()["status"] == "healthy"
    log = (node.data_dir / "logs" / "web.log").read_text()
    assert "Traceback" not in log, log[log.index("Traceback") - 2000 :][:6000]
