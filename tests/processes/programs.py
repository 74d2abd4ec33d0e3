"""Programs without Django as processes of their own, with one temporary directory for everything of theirs."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from tests.processes.node import ROOT

#: How programs that use `cluster.library` begin.
LIBRARY = """
import logging, os, signal, sys, time
# Warnings of unreachable replicas are meant: the program decides whether it wants to see them.
logging.basicConfig(level=logging.ERROR)
from cluster.library import QueryProcessorWithReplication, ReplicationManagerImpl
from vectors.library import Index, StorageEngineInMemory, VectorDTO
from vectors.library.environment import private_directory

def wait_for(condition, what="", timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what or condition
        time.sleep(0.05)

def members(manager):
    return [name for name, replica in manager.get_replica_info()["replicas"].items() if replica["member"]]

def raised(call, *args, **kwargs):
    try:
        return call(*args, **kwargs)
    except Exception as error:
        return error
"""


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


def run(program: str, directory: Path, *arguments: str, **environ: str) -> str:
    """Run a program that begins with `LIBRARY` to its good end, and return its output.

    Assert that it said nothing on stderr and left nothing.
    """
    process = start_program(LIBRARY + program, directory, *arguments, **environ)
    try:
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert errors == ""
    assert processes_of(directory) == []
    assert list(directory.iterdir()) == []
    return output
