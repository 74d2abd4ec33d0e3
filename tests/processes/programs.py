"""Programs without Django as processes of their own, with one temporary directory for everything of theirs."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from tests.processes.node import ROOT


def start_program(program: str | Path, directory: Path, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    """Start a program, given as its text or as a file, in a session of its own; its output is in pipes."""
    command = [str(program)] if isinstance(program, Path) else ["-c", textwrap.dedent(program)]
    return subprocess.Popen(
        [sys.executable, *command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=directory,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(directory), "PYTHONPATH": str(ROOT), **environ},
        start_new_session=True,
    )


def processes_of(directory: Path) -> list[str]:
    """Return the command lines of all processes whose temporary directory this is (Linux; elsewhere none are found)."""
    mark = f"TMPDIR={directory}\0".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes() + b"\0":
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found
