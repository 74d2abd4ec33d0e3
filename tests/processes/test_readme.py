"""The README's commands: each, run as written, answers what stands below it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.processes.node import NodeProcess, wait_for

README = Path(__file__).resolve().parent.parent.parent / "README.md"
TOUR, REPLICAS = re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")


def steps(block: str) -> list[tuple[str, str]]:
    """Return the commands of a block and what is said of their output ("" where nothing is)."""
    found: list[tuple[list[str], list[str]]] = []
    for line in block.splitlines():
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


def answer(command: str, ports: dict[int, int]) -> str:
    """Run a command, with the ports of the README replaced; return what it prints."""
    for told, real in ports.items():
        command = command.replace(f"localhost:{told}", f"127.0.0.1:{real}")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30, check=True)
    return done.stdout


def part_of(whole: object, part: object) -> object:
    """Return of `whole` what `part` has too, so that equality says that nothing else is claimed."""
    if isinstance(whole, dict) and isinstance(part, dict):
        return {name: part_of(value, part[name]) for name, value in whole.items() if name in part}
    return whole


@needs_curl
def test_the_tour_of_the_readme_answers_what_it_says(node: NodeProcess) -> None:
    assert len(steps(TOUR)) >= 7
    for command, said in steps(TOUR):
        answered = answer(command, {8000: node.port})
        assert said, command
        assert same_everywhere(answered) == same_everywhere(said), command


@needs_curl
def test_the_two_nodes_of_the_readme_are_started_as_it_says_and_answer_what_it_says() -> None:
    first, second = re.findall(r"^    script/server (.*--enable-replication.*)$", README.read_text(), re.MULTILINE)
    primary, replica = NodeProcess(options=tuple(shlex.split(first))), NodeProcess()
    options = shlex.split(second.replace("http://127.0.0.1:8000", primary.base_url))
    assert options[:2] == ["--port", "8001"]
    replica.options = tuple(options[2:])
    try:
        primary.launch()
        replica.start()
        wait_for(lambda: '"member":true' in primary.get("/replication/info").text, timeout_s=60)
        assert len(steps(REPLICAS)) >= 5
        for command, said in steps(REPLICAS):
            answered = same_everywhere(answer(command, {8000: primary.port, 8001: replica.port}))
            expected = same_everywhere(said)
            whole = "/promote" not in command
            assert (answered if whole else part_of(answered, expected)) == expected, command
    finally:
        primary.close()
        replica.close()
