"""The README's tour with curl: each command, run as written, answers what stands below it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.processes.node import NodeProcess

README = Path(__file__).resolve().parent.parent.parent / "README.md"
TOUR = re.search(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)


def steps() -> list[tuple[str, str]]:
    """Return the commands of the tour and what is said of their output ("" where nothing is)."""
    assert TOUR is not None
    found: list[tuple[list[str], list[str]]] = []
    for line in TOUR[1].splitlines():
        if line.startswith("curl"):
            found.append(([line], []))
        elif line.startswith("#"):
            found[-1][1].append(line.removeprefix("#").strip())
        elif line:
            found[-1][0].append(line)
    return [("\n".join(command), "".join(said)) for command, said in found]


def same_everywhere(text: str) -> object:
    """Return JSON without what differs from node to node: the shard's uid in tokens."""
    return json.loads(re.sub(r'"0\.[0-9a-f]{8}\.', '"0.--------.', text))


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
def test_the_tour_of_the_readme_answers_what_it_says(node: NodeProcess) -> None:
    assert len(steps()) >= 7
    for command, said in steps():
        done = subprocess.run(
            ["sh", "-c", command.replace("localhost:8000", f"127.0.0.1:{node.port}")],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert said, command
        assert same_everywhere(done.stdout) == same_everywhere(said), command
