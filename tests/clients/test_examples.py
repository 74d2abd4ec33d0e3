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
@pytest.mark.timeout(360)
def test_the_example_shows_replication_sharding_both_and_a_promotion_and_leaves_nothing(tmp_path: Path) -> None:
    process = start_program(REPLICATION, tmp_path)
    try:
        output, errors = process.communicate(timeout=300)
    finally:
        process.kill()

    assert process.returncode == 0, (output, errors)
    assert errors == ""
    parts = re.split(r"^(?=.+\n=+$)", output, flags=re.MULTILINE)
    _, replication, sharding, both, promotion = parts
    assert replication.count("following, lacks 0 operations, holds 1,797 rows") == 2
    assert re.findall(r"  (one|quorum|all) +answered in", replication) == ["one", "quorum", "all"]
    assert "{'replica_1': True, 'replica_2': True}" in replication
    assert "refused: 409 not_primary" in replication
    assert re.findall(r"  (one|quorum|all) +(written|refused)", replication) == [
        ("one", "written"),
        ("quorum", "written"),
        ("all", "refused"),
    ]
    assert re.search(r"later it has all 1,805 rows", replication)

    assert _rows(sharding, r"1,797 handwritten digits: (.*)") == 1797
    assert "the best of all: digit-0042, digit-0125, digit-0381" in sharding
    assert _rows(sharding, r"s later: (.*)") == 1798
    assert re.search(r"Meanwhile \d+ searches and counts saw every row once", sharding)
    assert "refused: 409 not_primary" in sharding
    assert "complete=False, failed=['shard_2']" in sharding
    assert "New vectors get ids of the shards that are there: shard_0 and shard_1." in sharding
    assert "all 1,818 rows are there" in sharding
    assert _rows(sharding, r"Left are (.*)") == _rows(sharding, r"Evened out: (.*);") == 1818

    assert _rows(both, r"1,797 rows: (.*)") == 1797
    assert sum(int(rows.replace(",", "")) for rows in re.findall(r"holds ([\d,]+) of them", both)) == 1797
    assert re.search(r"of shard_0: written\n.*of shard_1: refused, not_enough_copies\n", both)

    assert promotion.count("following, lacks 0 operations, holds 1,797 rows") == 2
    assert "This node is the primary now, in term 2" in promotion
    assert "replica_1 has 1,798 rows, replica_2 1,798" in promotion
    assert "takes no writes any more" in promotion
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def _rows(text: str, pattern: str) -> int:
    """Return the sum of the rows by shard that the example prints after some words."""
    found = re.search(pattern, text)
    assert found, text
    return sum(int(rows.replace(",", "")) for rows in re.findall(r"shard_\d ([\d,]+)", found[1]))


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize(
    ("part", "said"),
    [
        pytest.param("replication", "empty nodes were started", marks=pytest.mark.long),
        ("sharding", "Meanwhile"),
        pytest.param("both", "Write at", marks=pytest.mark.long),
    ],
)
def test_an_interrupted_part_of_the_example_ends_all_that_it_started(
    tmp_path: Path, part: str, said: str, number: signal.Signals
) -> None:
    process = start_program(REPLICATION, tmp_path, part)
    try:
        assert process.stdout is not None
        while said not in (line := process.stdout.readline()):
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
