"""What `manage.py` settles before Django reads its settings: the node a command is for, and the options of `serve`."""

from __future__ import annotations

import argparse
import os
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec

from mlvdb_site.node import BASE_DIR, node_files
from mlvdb_site.settings_table import BY_NAME, SettingError, read_all


@dataclass(frozen=True, slots=True)
class ServeOption:
    """An option of `serve`, and the setting (its environment variable) that it gives."""

    flag: str
    setting: str
    metavar: str = ""
    switch: bool = False
    alone: str = ""
    """The value of the option when no word follows it; empty: a word must follow."""
    only_with: str = ""
    """What it changes nothing without, as it is written; empty: it always counts."""

    @property
    def help(self) -> str:
        """The setting's meaning and where else it can be given."""
        setting = BY_NAME[self.setting]
        default = f", default {setting.default}" if setting.default not in ("", False) else ""
        return f"{setting.help} (${self.setting}{default})".replace("%", "%%")


_AS_REPLICA = "--enable-replication replica"
_WITH_SHARDS = "--enable-sharding"

SERVE_OPTIONS: tuple[ServeOption, ...] = (
    ServeOption("--host", "MLVDB_HOST", "ADDRESS"),
    ServeOption("--port", "MLVDB_PORT", "N"),
    ServeOption("--data-dir", "MLVDB_DATA_DIR", "DIR"),
    ServeOption("--workers", "MLVDB_WORKERS", "N"),
    ServeOption("--threads", "MLVDB_THREADS", "N"),
    ServeOption("--log-level", "MLVDB_LOG_LEVEL", "LEVEL"),
    ServeOption("--advertise-url", "MLVDB_ADVERTISE_URL", "URL"),
    ServeOption("--enable-replication", "MLVDB_ENABLE_REPLICATION", "primary|replica", alone="primary"),
    ServeOption("--replica-name", "MLVDB_REPLICA_NAME", "NAME", only_with=_AS_REPLICA),
    ServeOption("--primary-url", "MLVDB_PRIMARY_URL", "URL", only_with=_AS_REPLICA),
    ServeOption("--enable-sharding", "MLVDB_ENABLE_SHARDING", switch=True),
    ServeOption("--shards", "MLVDB_SHARDS", "N", only_with=_WITH_SHARDS),
    ServeOption("--sharding-strategy", "MLVDB_SHARDING_STRATEGY", "hash|round_robin", only_with=_WITH_SHARDS),
    ServeOption("--reload", "MLVDB_RELOAD", switch=True),
)


DEMO_OPTION = "--demo"

#: What the demonstration switches on, unless the environment says otherwise.
_DEMO = {"MLVDB_ENABLE_REPLICATION": "primary", "MLVDB_ENABLE_SHARDING": "true"}


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options; a given one ends up in the environment, so no default hides what stands there."""
    for option in SERVE_OPTIONS:
        if option.switch:
            parser.add_argument(
                option.flag, dest=option.setting, action="store_const", const="true",
                default=argparse.SUPPRESS, help=option.help,
            )  # fmt: skip
        elif option.alone:
            parser.add_argument(
                option.flag, dest=option.setting, nargs="?", const=option.alone, metavar=option.metavar,
                default=argparse.SUPPRESS, help=option.help,
            )  # fmt: skip
        else:
            parser.add_argument(
                option.flag, dest=option.setting, metavar=option.metavar, default=argparse.SUPPRESS, help=option.help
            )


def prepare_environment(argv: Sequence[str]) -> None:
    """Turn the options of `serve` into its environment, which its children inherit, and check every setting.

    The settings module reads the environment when it is imported, and the data dir decides which node this is:
    `--data-dir`, `MLVDB_DATA_DIR`, or `var/<port>` in the checkout. A setting that cannot be read ends the program
    with one line and exit code 2.
    """
    given: dict[str, str] = {}
    if argv[1:2] == ["serve"]:
        # The web server's allocator reads this when it is loaded: one pool, and what bodies and answers took is used
        # again, or goes back to the system a second later.
        os.environ.setdefault("_RJEM_MALLOC_CONF", "narenas:1,dirty_decay_ms:1000,muzzy_decay_ms:0")
        _raise_file_limit()
        given = _given_options(argv[2:])
        os.environ.update(given)
        if DEMO_OPTION in argv[2:]:
            os.environ.update({name: value for name, value in _DEMO.items() if not os.environ.get(name)})
        if not os.environ.get("MLVDB_DATA_DIR"):
            port = os.environ.get("MLVDB_PORT") or BY_NAME["MLVDB_PORT"].default
            os.environ["MLVDB_DATA_DIR"] = str(BASE_DIR / "var" / str(port))
    if os.environ.get("MLVDB_DATA_DIR"):
        os.environ["MLVDB_DATA_DIR"] = os.path.abspath(os.path.expanduser(os.environ["MLVDB_DATA_DIR"]))
    try:
        values = read_all()
    except SettingError as error:
        sys.exit(_refuse(str(error)))
    is_on = {
        _AS_REPLICA: values["MLVDB_ENABLE_REPLICATION"] == "replica",
        _WITH_SHARDS: values["MLVDB_ENABLE_SHARDING"],
    }
    for option in SERVE_OPTIONS:
        if option.setting in given and not is_on.get(option.only_with, True):
            print(f"warning: {option.flag} changes nothing without {option.only_with}", file=sys.stderr)
    try:
        node_files(values["MLVDB_DATA_DIR"]).create()
    except OSError as error:
        sys.exit(_refuse(f"the data dir cannot be used: {error}"))
    if values["DATABASE_URL"] and find_spec("psycopg") is None:
        sys.exit(_refuse("DATABASE_URL needs psycopg, which is not installed: pip install 'psycopg[binary]'"))


def _raise_file_limit() -> None:
    """Allow this process and its children as many open files as the system does: a mapped segment holds several."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _given_options(arguments: Sequence[str]) -> dict[str, str]:
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    add_serve_options(parser)
    try:
        given, _others = parser.parse_known_args(arguments)
    except argparse.ArgumentError:
        # The command's own parser will say what is wrong.
        return {}
    return vars(given)


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
