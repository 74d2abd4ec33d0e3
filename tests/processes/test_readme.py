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
TOUR, SHARDS, REPLICAS = re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)
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
    """Return JSON without what differs from node to node: tokens, which name shards, and the bytes of their engines."""
    return json.loads(re.sub(r'"seq":\{[^}]*\}', '"seq":{}', re.sub(r'"size_bytes":\d+', '"size_bytes":0', text)))


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
@pytest.mark.parametrize("options", [(), ("--enable-sharding",)], ids=["a single node", "a coordinator"])
def test_the_tour_of_the_readme_answers_what_it_says(options: tuple[str, ...]) -> None:
    node = NodeProcess(options=options)
    try:
        node.start()
        _take(node)
    finally:
        node.close()


def _take(node: NodeProcess) -> None:
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


@needs_curl
def test_the_shards_of_the_readme_are_started_as_it_says_and_answer_what_it_says() -> None:
    section = README.read_text().partition("## Shards\n")[2]
    first, second = re.findall(r"^    script/server (.*)$", section.partition("## ")[0], re.MULTILINE)
    coordinator, other = NodeProcess(options=tuple(shlex.split(first))), NodeProcess()
    assert second == "--port 8001"
    try:
        other.launch()
        coordinator.start()
        wait_for(lambda: other.get("/readyz").ok, timeout_s=60)
        assert len(steps(SHARDS)) >= 6
        for command, said in steps(SHARDS):
            placed = command.replace("http://127.0.0.1:8001", other.base_url)
            answered = same_everywhere(answer(placed, {8000: coordinator.port, 8001: other.port}))
            expected = same_everywhere(said)
            assert part_of(answered, expected) == expected, command
            if "shard_url" in command:
                wait_for(lambda: _shards(coordinator).get("shard_2", 0) > 0, timeout_s=60)
        wait_for(lambda: sorted(_shards(coordinator)) == ["shard_0", "shard_1"], timeout_s=60)
        assert coordinator.post("/count?namespace=fruit", {}).json() == {"count": 3}
    finally:
        coordinator.close()
        other.close()


def _shards(node: NodeProcess) -> dict[str, int]:
    """Return how many slots each shard owns."""
    return {label: shard["slots"] for label, shard in node.get("/sharding/info").json()["shards"].items()}
