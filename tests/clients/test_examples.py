"""The examples run as they are, from anywhere, and leave nothing behind."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings

from vectors.client import Client

SCRIPT = settings.BASE_DIR / "examples" / "similar_digits.py"


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
@pytest.mark.xdist_group("data-node")
def test_the_same_example_uses_a_running_node(client: Client, node_url: str, tmp_path: Path) -> None:
    _check(_run(tmp_path, node_url))

    assert client.namespaces() == []
