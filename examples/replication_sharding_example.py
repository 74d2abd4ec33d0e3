"""Replication, sharding and both of them from a Python program, with nodes that it starts for each part.

    python examples/replication_sharding_example.py [replication] [sharding] [both] [promotion]

Nothing else needs to run. The nodes are real (`manage.py serve`, each with web workers, Celery and a broker of its own)
on free ports and temporary directories; all of it is gone at the end, also after Ctrl-C. It takes about a minute.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Also without an installation: from a checkout.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from replication_sharding.both import both
from replication_sharding.promotion import promotion
from replication_sharding.replication import replication
from replication_sharding.screen import interruption, say
from replication_sharding.sharding import sharding
from vectors.datasets import load_digits

PARTS = {"replication": replication, "sharding": sharding, "both": both, "promotion": promotion}


def main(wanted: list[str]) -> int:
    """Run the parts, all of them when none is named; return the exit code."""
    if set(wanted) - set(PARTS):
        print(f"the parts are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    digits = load_digits()
    try:
        for number, part in enumerate(wanted or PARTS):
            say("\n" if number else "", end="")
            PARTS[part](digits)
        interruption.check()
    except BaseException:
        # Of whatever class: on its way an interruption may have become the error of what it interrupted.
        if interruption.number is None:
            raise
        print("\nInterrupted; everything that was started has been ended.", flush=True)
        return 128 + interruption.number
    say("\nDone: nodes, broker and workers have been ended, their directories removed.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
