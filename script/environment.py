"""Make the project's virtual environment when it is missing or old, then run a program in it.

`environment.py [--dev] -- ARGUMENT…` ends as `.venv/bin/python ARGUMENT…` (exec: signals and the exit code are the
program's own). Needs nothing but Python 3.11. Two may run at once: one installs, the other waits.
"""

import fcntl
import hashlib
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
RUNTIME, DEVELOPMENT = "requirements.txt", "requirements-dev.txt"


def main(arguments: list[str]) -> None:
    """Prepare the environment and become the program."""
    development = arguments[:1] == ["--dev"]
    command = arguments[arguments.index("--") + 1 :]
    if not is_ready(development=development):
        with (ROOT / ".venv.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                say("Another start is installing into .venv; waiting for it …")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_ready(development=development):
                # An exception ends pip as well; the default for SIGTERM would leave it at work alone.
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
                install(development=development)
    os.execv(PYTHON, [str(PYTHON), *command])


def is_ready(*, development: bool) -> bool:
    """Return whether the environment holds what today's requirements ask for."""
    # What the tests need includes what a node needs.
    kinds = [DEVELOPMENT] if development else [RUNTIME, DEVELOPMENT]
    return os.access(PYTHON, os.X_OK) and any(read(stamp_of(kind)) == wanted(kind) for kind in kinds)


def install(*, development: bool) -> None:
    """Make the environment if there is none that works, and install the requirements."""
    if not works(PYTHON):
        make()
    kind = DEVELOPMENT if development else RUNTIME
    say(f"Installing {kind} into .venv (only when it has changed; a minute or so) …")
    stamp_of(kind).unlink(missing_ok=True)
    options = ["install", "-qq", "--no-input", "--disable-pip-version-check", "--requirement", str(ROOT / kind)]
    if subprocess.call([*pip(), *options], stdin=subprocess.DEVNULL) != 0:
        fail(f"pip could not install {kind}: its message is above; is the network there?")
    stamp_of(kind).write_text(wanted(kind))


def make() -> None:
    """Make an empty environment, with pip in it where Python brings it along."""
    if importlib.util.find_spec("venv") is None or not (has_ensurepip() or has_outer_pip()):
        fail(f"Python {platform.python_version()} here cannot make virtual environments: {missing_package()}")
    say(f"Making .venv with Python {platform.python_version()} …")
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    options = [] if has_ensurepip() else ["--without-pip"]
    made = subprocess.run(
        [base_python(), "-m", "venv", *options, str(ENVIRONMENT)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if made.returncode != 0:
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        last = (made.stdout.strip().splitlines() or ["no message"])[-1]
        fail(f"the virtual environment cannot be made ({last}): {missing_package()}")


def pip() -> list[str]:
    """Return the command for pip: the environment's own, else this Python's, aimed at the environment."""
    if subprocess.run([PYTHON, "-c", "import pip"], capture_output=True).returncode == 0:
        return [str(PYTHON), "-m", "pip"]
    return [base_python(), "-m", "pip", "--python", str(PYTHON)]


def has_ensurepip() -> bool:
    """Return whether this Python can put pip into a new environment (Debian packages that apart)."""
    return importlib.util.find_spec("ensurepip") is not None


def has_outer_pip() -> bool:
    """Return whether this Python has a pip that can install into another environment (22.3 and later)."""
    if importlib.util.find_spec("pip") is None:
        return False
    command = [base_python(), "-m", "pip", "--python", base_python(), "--version"]
    return subprocess.run(command, capture_output=True).returncode == 0


def missing_package() -> str:
    """Return which one package to install, and how, on this system."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    system = read(Path("/etc/os-release")).lower()
    for name, advice in (
        ("debian", f"apt-get install python{version}-venv"),
        ("ubuntu", f"apt-get install python{version}-venv"),
        ("fedora", "dnf install python3-pip"),
        ("rhel", f"dnf install python{version}-pip"),
        ("suse", f"zypper install python{version.replace('.', '')}-pip"),
        ("alpine", "apk add py3-pip"),
        ("arch", "pacman -S python-pip"),
    ):
        if name in system:
            return f"install one package: {advice}"
    return "install the package with Python's `venv` and `ensurepip` modules"


def works(python: Path) -> bool:
    """Return whether the interpreter of an environment still starts (its base may be gone) and is new enough."""
    if not os.access(python, os.X_OK):
        return False
    test = "import sys; sys.exit(sys.version_info < (3, 11))"
    return subprocess.run([python, "-c", test], capture_output=True).returncode == 0


def base_python() -> str:
    """Return the interpreter that this one's environment, if it runs in one, was made from."""
    return getattr(sys, "_base_executable", None) or sys.executable


def wanted(kind: str) -> str:
    """Return what the stamp of an up-to-date environment says: the requirements and the interpreter."""
    digest = hashlib.sha256(f"{read(ENVIRONMENT / 'pyvenv.cfg')}\n{ROOT}\n".encode())
    for name in sorted({kind, RUNTIME}):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def stamp_of(kind: str) -> Path:
    """Return the file that says for which requirements an installation was finished."""
    return ENVIRONMENT / f".installed-{kind}"


def read(path: Path) -> str:
    """Return a file's text, empty when there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""


def say(text: str) -> None:
    """Tell the person what takes time."""
    print(text, file=sys.stderr, flush=True)


def fail(text: str) -> None:
    """End with one line."""
    sys.exit(f"error: {text}")


if __name__ == "__main__":
    main(sys.argv[1:])
