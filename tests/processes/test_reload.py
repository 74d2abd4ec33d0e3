"""`serve --reload`: changed code is served without a restart by hand."""

from __future__ import annotations

import os
import time

from tests.processes.node import ROOT, NodeProcess, wait_for


def test_a_changed_file_restarts_web_and_celery_but_not_the_broker() -> None:
    with NodeProcess(options=("--reload",)) as node:
        before = node.record["processes"]
        source = ROOT / "mlvdb_site" / "wsgi.py"
        stamp = source.stat()
        os.utime(source, ns=(time.time_ns(), time.time_ns()))
        try:
            wait_for(
                lambda: all(
                    node.record["processes"].get(name, before[name]) != before[name]
                    for name in ("web", "health", "replication", "tasks", "beat")
                ),
                timeout_s=40,
                what="new processes",
            )
        finally:
            os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert node.record["processes"]["broker"] == before["broker"]
        assert wait_for(lambda: node.get("/readyz").status_code == 200, timeout_s=20)
