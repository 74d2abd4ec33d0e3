"""The examples run as they are, from anywhere, and leave nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings

from tests.processes.node import wait_for
from tests.processes.programs import processes_of, start_program
from vectors.client import Client

SCRIPT = settings.BASE_DIR / "examples" / "similar_digits.py"
REPLICATION = settings.BASE_DIR / "examples" / "replication_sharding_example.py"


def _run(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        capture_output=True,
        text=True,
        cwd=directory,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(directory)},
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def _check(text: str) -> None:
    assert text.startswith("1,797 digits")
    alike, others = text.split("the same, but no fours")
    assert re.findall(r"a (\w+)", alike.partition(":")[2]) == ["four"] * 5
    assert "four " not in others
    right = re.search(r"neighbours: ([\d.]+)%", text)
    assert right is not None
    assert float(right[1]) > 95


def test_the_library_example_needs_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    _check(_run(tmp_path))

    assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
def test_the_same_example_uses_a_running_node(client: Client, node_url: str, tmp_path: Path) -> None:
    _check(_run(tmp_path, node_url))

    assert client.namespaces() == []


@pytest.mark.processes
@pytest.mark.slow
def test_the_replication_example_shows_replicas_levels_a_loss_and_a_promotion_and_leaves_nothing(tmp_path) -> None:
    process = start_program(REPLICATION, tmp_path)
    try:
        output, errors = process.communicate(timeout=110)
    finally:
        process.kill()

    assert process.returncode == 0, errors
    assert errors == ""
    assert output.count("following, lacks 0 operations, holds 1,797 rows") == 2
    assert re.findall(r"  (one|quorum|all) +answered in", output) == ["one", "quorum", "all"]
    assert "{'replica_1': True, 'replica_2': True}" in output
    assert "refused: 409 not_primary" in output
    assert re.findall(r"  (one|quorum|all) +(written|refused)", output) == [
        ("one", "written"),
        ("quorum", "written"),
        ("all", "refused"),
    ]
    assert re.search(r"later it has all 1,805 rows", output)
    assert "This node is the primary now, in term 2" in output
    assert "replica_1 has 1,806 rows, replica_2 1,806" in output
    assert "takes no writes any more" in output
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_replication_example_ends_all_that_it_started(tmp_path: Path, number: signal.Signals) -> None:
    process = start_program(REPLICATION, tmp_path)
    try:
        assert process.stdout is not None
        while "empty nodes were started" not in (line := process.stdout.readline()):
            assert line, process.communicate()
        wait_for(lambda: len(processes_of(tmp_path)) > 10, timeout_s=30)
        # As Ctrl-C in a terminal: to the whole process group.
        os.killpg(process.pid, number)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 128 + number, (output, errors)
    wait_for(lambda: not processes_of(tmp_path), timeout_s=10)
    assert list(tmp_path.iterdir()) == []
