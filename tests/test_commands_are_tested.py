"""Every management command of our apps is named in some test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import get_commands

TESTS = Path(__file__).parent
OUR_APPS = ("mlvdb_site", "vectors", "cluster")


def _our_commands() -> list[str]:
    return sorted(name for name, app in get_commands().items() if app in OUR_APPS)


def _words_in_tests() -> set[str]:
    words: set[str] = set()
    for path in TESTS.rglob("*.py"):
        if path == Path(__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.add(node.value)
            elif isinstance(node, ast.ImportFrom) and ".management.commands." in (node.module or ""):
                words.add(str(node.module).rpartition(".")[2])
    return words


def test_there_are_commands() -> None:
    assert {"load_vectors", "export_vectors", "bench", "serve"} <= set(_our_commands())


@pytest.mark.parametrize("name", _our_commands())
def test_a_command_is_called_by_some_test(name: str) -> None:
    assert name in _words_in_tests(), f"no test under tests/ calls the command {name}"


@pytest.mark.parametrize("name", _our_commands())
def test_a_command_is_documented(name: str) -> None:
    text = "".join(path.read_text() for path in sorted((Path(settings.BASE_DIR) / "docs").glob("*.md")))

    assert name in text, f"no page under docs/ names the command {name}"
