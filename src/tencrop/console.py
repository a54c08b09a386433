"""The terminal: names that a user chose are printed as they are, and speeds are never rounded to 0.

rich takes [/b] in a path for markup and :apple: for a picture; nothing here is meant as either.
"""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console
from rich.progress import TextColumn


def plain_console(**options: Any) -> Console:
    """A rich console that prints strings, table cells and captions as they are; options: those of rich's Console."""
    return LastingConsole(markup=False, emoji=False, highlight=False, **options)


class LastingConsole(Console):
    """A console whose reader may stop early (`| head`): the rest is not shown, and the work continues.

    rich ends the process there, with exit code 1: report.py would print its table and then write no page.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with open(os.devnull, "w") as nowhere:  # else Python's own flush at exit fails
            os.dup2(nowhere.fileno(), self.file.fileno())


def plain_column(text: str) -> TextColumn:
    """A column of a progress bar, such as "{task.description}", likewise."""
    return TextColumn(text, markup=False)


def rate(images_per_s: float) -> str:
    """ "1,234 images/s"; of a slow network "0.037 images/s": three digits, never 0 where something moves."""
    digits = f"{images_per_s:,.0f}" if images_per_s >= 100 or images_per_s == 0 else f"{images_per_s:.3g}"
    return f"{digits} images/s"
