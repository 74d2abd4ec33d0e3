"""What the parts print and wait with, all of which Ctrl-C ends."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

PATIENCE_S = 60.0


class Interruption:
    """What Ctrl-C or SIGTERM does: it stops the program once, wherever it is, and never what ends it then."""

    def __init__(self) -> None:
        self.number: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)

    def check(self) -> None:
        """Stop the program if it was to be stopped: a destructor or a callback from C swallows what a signal raises."""
        if self.number is not None:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, _frame: object) -> None:
        if self.number is None:
            self.number = number
            raise KeyboardInterrupt


interruption = Interruption()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds; raise RuntimeError when it does not in a minute."""
    began = time.monotonic()
    while not condition():
        give_up_after(began, what)
        time.sleep(0.1)


def give_up_after(began: float, what: str) -> None:
    """Raise RuntimeError when what was begun has lasted for a minute; stop the program if it was to be stopped."""
    interruption.check()
    if time.monotonic() - began > PATIENCE_S:
        raise RuntimeError(f"waited {PATIENCE_S:.0f} s for {what}")


def heading(text: str) -> None:
    """Print the title of a part."""
    say(f"{text}\n{'=' * len(text)}")


def step(text: str) -> None:
    """Print the title of a step."""
    say(f"\n-- {text}")


def say(text: str, *, end: str = "\n") -> None:
    """Print a line at once."""
    interruption.check()
    print(text, flush=True, end=end)
