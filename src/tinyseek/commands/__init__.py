"""The commands: each parses its arguments, calls, prints. Here is what they share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinyseek.settings import Settings


class Parser(argparse.ArgumentParser):
    """A command's arguments; key=value ones may stand before and after the options."""

    def __init__(self, command: str, about: str, more: Callable[[], str] = str) -> None:
        super().__init__(
            prog=f"tinyseek {command}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self._more = more

    def format_help(self) -> str:
        more = self._more()
        return super().format_help() + (f"\n{more}\n" if more else "")


def settings_text(cls: Callable[[], type[Settings]], title: str = "settings (key=value)") -> Callable[[], str]:
    """What --help says of a settings class, which is imported only then."""

    def text() -> str:
        from tinyseek.settings import describe
        from tinyseek.terminal import settings_help

        return f"{title}:\n{settings_help(describe(cls()))}"

    return text


def say(line: str) -> None:
    """A line of progress: on stderr, so that results alone are on stdout; of several processes the first speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)
