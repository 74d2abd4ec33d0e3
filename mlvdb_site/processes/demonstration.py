"""Loads and shows the data set that ships with the project, against a running node."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mlvdb_site.processes import lifeline


def main(arguments: Sequence[str]) -> None:
    """Run the demonstration against the node at the URL in `arguments`, in a process of its own."""
    lifeline.hold_on()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mlvdb_site.settings")
    import django

    django.setup()
    from vectors import demo

    demo.run(arguments[0], sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
