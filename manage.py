#!/usr/bin/env python
"""Run a management command of one node; `MLVDB_DATA_DIR` says which (default `var/8000`)."""

import os
import sys


def main() -> None:
    """Hand the command line to Django."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mlvdb_site.settings")
    from mlvdb_site.command_line import prepare_environment

    prepare_environment(sys.argv)
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
