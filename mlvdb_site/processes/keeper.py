"""Run a program that is not ours as a child, and end it when the supervisor has gone (where the kernel does not).

`python -S -E keeper.py FD PROGRAM ARGUMENT…`: FD is a pipe that ends with the supervisor. Runs alone, without the
packages of the project, so that it stays small.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys


def main(descriptor: int, command: list[str]) -> int:
    """Return the program's exit code; on SIGTERM, or when the pipe ends, end the program first."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    program = subprocess.Popen(command)
    while program.poll() is None:
        ready, _, _ = select.select([wake_read, descriptor], [], [])
        if descriptor in ready:
            program.kill()
            break
        if signal.SIGTERM in os.read(wake_read, 64):
            with contextlib.suppress(ProcessLookupError):
                program.terminate()
    return program.wait()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
