"""`script/server` on a machine with only Python: a checkout of its own, without packages to install."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.processes.node import ROOT

MANAGE = """
import json, os, sys, time
print(json.dumps({"argv": sys.argv[1:], "cwd": os.getcwd(), "pid": os.getpid(), "prefix": sys.prefix}), flush=True)
if "wait" in sys.argv:
    time.sleep(60)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the real scripts, an empty list of requirements and a program that says how it was started."""
    root = tmp_path / "a checkout with spaces"
    shutil.copytree(ROOT / "script", root / "script", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.txt", "requirements-dev.txt"):
        (root / name).write_text("# nothing\n")
    (root / "manage.py").write_text(MANAGE)
    return root


def environ() -> dict[str, str]:
    """Return an environment in which this Python, not its virtual environment, is found first."""
    base = Path(sys.base_prefix) / "bin"
    return {"PATH": f"{base}{os.pathsep}{os.environ['PATH']}", "HOME": os.environ.get("HOME", "/")}


def start(script: Path, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Start a script as a shell would."""
    return subprocess.Popen(
        [str(script), *arguments], cwd=cwd, env=environ(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_first_starts_at_once_install_once_and_both_run(checkout: Path, tmp_path: Path) -> None:
    link = tmp_path / "server"
    link.symlink_to(checkout / "script" / "server")
    both = [start(link, "--port", "1", cwd=tmp_path), start(checkout / "script" / "server", cwd=checkout)]
    results = [process.communicate(timeout=110) for process in both]
    said = [json.loads(output) for output, _ in results]
    assert said[0]["argv"] == ["serve", "--port", "1"]
    assert said[1]["argv"] == ["serve"]
    # The caller's directory stays: a relative --data-dir means what it says there.
    assert said[0]["cwd"] == str(tmp_path)
    # exec all the way: the program has the process id that was started, so signals reach it.
    assert [entry["pid"] for entry in said] == [process.pid for process in both]
    assert {entry["prefix"] for entry in said} == {str(checkout / ".venv")}
    assert "".join(errors for _, errors in results).count("Making .venv") == 1


def test_a_second_start_installs_nothing_and_a_changed_requirement_does(checkout: Path) -> None:
    script = checkout / "script" / "server"
    assert "Installing" in start(script, cwd=checkout).communicate(timeout=110)[1]
    assert start(script, cwd=checkout).communicate(timeout=30)[1] == ""
    (checkout / "requirements.txt").write_text("# still nothing\n")
    assert "Installing requirements.txt" in start(script, cwd=checkout).communicate(timeout=60)[1]
    (checkout / "requirements.txt").write_text("./does-not-exist\n")
    process = start(script, cwd=checkout)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.strip().splitlines()[-1].startswith("error: pip could not install requirements.txt")


def test_a_signal_reaches_the_program(checkout: Path) -> None:
    process = start(checkout / "script" / "server", "wait", cwd=checkout)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGTERM


def test_without_a_python_that_is_new_enough_one_line_says_so(checkout: Path) -> None:
    done = subprocess.run(
        [shutil.which("sh") or "/bin/sh", str(checkout / "script" / "server")],
        env={"PATH": str(_path_without_python(checkout))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    [line] = done.stderr.strip().splitlines()
    assert "no Python 3.11 or newer" in line


def test_without_ensurepip_and_pip_the_one_package_to_install_is_named(monkeypatch, tmp_path: Path) -> None:
    environment = _environment_module()
    monkeypatch.setattr(environment, "ENVIRONMENT", tmp_path / ".venv")
    monkeypatch.setattr(environment, "has_ensurepip", lambda: False)
    monkeypatch.setattr(environment, "has_outer_pip", lambda: False)
    with pytest.raises(SystemExit, match="cannot make virtual environments: install "):
        environment.make()
    monkeypatch.setattr(environment, "read", lambda path: "ID=debian\n")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert environment.missing_package() == f"install one package: apt-get install python{version}-venv"


def _environment_module() -> ModuleType:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("script_environment", ROOT / "script" / "environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _path_without_python(checkout: Path) -> Path:
    # The scripts need these three programs of any POSIX system.
    directory = checkout / "bin"
    directory.mkdir()
    for name in ("dirname", "readlink", "sh"):
        found = shutil.which(name)
        assert found is not None
        (directory / name).symlink_to(found)
    return directory
