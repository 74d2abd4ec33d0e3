"""Write docs/settings.md from the settings table."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from mlvdb_site.settings_table import (
    MIB,
    SETTINGS,
    Setting,
    base_url,
    boolean,
    database_url,
    number,
    size_bytes,
    whole,
    words,
)

_KINDS = {
    str: "text",
    whole: "whole number",
    number: "number",
    boolean: "true or false",
    size_bytes: "size",
    words: "comma-separated list",
    base_url: "URL",
    database_url: "URL",
}
_HEAD = """# Settings

Every setting is an environment variable, read when a process of the node starts. Sizes take the suffixes `k`, `m` and
`g` (powers of 1,024). This page is written by `manage.py settings_table --write`.

| setting | type | default | meaning |
| --- | --- | --- | --- |
"""


class Command(BaseCommand):
    """`manage.py settings_table [--write]`."""

    help = "Print the settings as a table; --write replaces docs/settings.md."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take the switch."""
        parser.add_argument("--write", action="store_true", help="write docs/settings.md instead of printing")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print or write the table."""
        if options["write"]:
            (settings.BASE_DIR / "docs" / "settings.md").write_text(settings_page())
        else:
            self.stdout.write(settings_page(), ending="")


def settings_page() -> str:
    """Return the text of docs/settings.md."""
    return _HEAD + "".join(_row(setting) for setting in SETTINGS)


def _row(setting: Setting) -> str:
    kind = " · ".join(f"`{word}`" for word in setting.choices) or _KINDS[setting.kind]
    if setting.minimum is not None:
        kind += f", at least {setting.minimum:g}"
    if setting.maximum is not None:
        kind += f", at most {setting.maximum:g}"
    return f"| `{setting.name}` | {kind} | {_default(setting)} | {setting.help} |\n"


def _default(setting: Setting) -> str:
    value = setting.default
    if setting.kind is size_bytes and value and value % 1024 == 0:
        return f"`{value // MIB}m`" if value % MIB == 0 else f"`{value // 1024}k`"
    if setting.kind is words:
        value = ",".join(value)
    return f"`{value}`" if value != "" else ""
