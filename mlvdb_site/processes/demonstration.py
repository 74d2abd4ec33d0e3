"""Completes the demonstration's cluster, loads and shows the data set that ships with the project."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from mlvdb_site.processes import lifeline


def main(arguments: Sequence[str]) -> None:
    """Run the demonstration in a process of its own: against the coordinator at a URL, with other nodes as NAME=URL."""
    lifeline.hold_on()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mlvdb_site.settings")
    import django

    django.setup()
    # What is printed here is for the person at the terminal.
    logging.disable(logging.INFO)
    from cluster import demo

    base_url, *others = arguments
    demo.run(base_url, {name: url for name, _, url in (other.partition("=") for other in others)}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
