"""Rich consoles that print user-chosen names verbatim, and the format of throughputs.

By default rich interprets [/b] in a path as markup and :apple: as an emoji. Here text is never meant as either.
"""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console
from rich.progress import TextColumn


def plain_console(**options: Any) -> Console:
    """A rich console that prints strings, table cells and captions verbatim; `options` are those of rich's Console."""
    # highlight=False: rich would color the numbers inside names.
    return PipeTolerantConsole(markup=False, emoji=False, highlight=False, **options)


class PipeTolerantConsole(Console):
    """A console whose reader may stop early (`| head`): the rest is not shown, and the work continues.

    rich ends the process there, with exit code 1: report.py would print its table and then write no page.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with open(os.devnull, "w") as nowhere:  # else Python's own flush at exit fails
            os.dup2(nowhere.fileno(), self.file.fileno())


def plain_column(text: str) -> TextColumn:
    """A text column of a progress bar, such as "{task.description}", without markup."""
    return TextColumn(text, markup=False)


def rate(images_per_s: float) -> str:
    """Format a throughput: "1,234 images/s", or "0.037 images/s" (three digits, so that a slow one is not "0")."""
    # "0 images/s" is reserved for a job that does not move
    digits = f"{images_per_s:,.0f}" if images_per_s >= 100 or images_per_s == 0 else f"{images_per_s:.3g}"
    return f"{digits} images/s"
