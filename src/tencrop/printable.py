"""Makes any text printable and writable, whatever characters it contains.

Two kinds of text cannot be encoded. A terminal or log that is not UTF-8 (a container without a locale, an ISO locale)
lacks the signs of our tables and letters of names. And a file name that is not UTF-8, as in archives made on Windows,
contains surrogates, which no encoding accepts. Every command calls `print_any_text` first; pages and figures pass names
through `printable`; JSON and YAML escape such characters by themselves. Imports nothing slow.
"""

from __future__ import annotations

import codecs
import io
import os
import sys

# ASCII replacements for the typographic signs in our tables and messages.
MARKS = str.maketrans({"–": "-", "−": "-", "±": "+-", "×": "x", "·": "-", "…": "...", "’": "'", "•": "*"})
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
ERRORS = "tencrop.printable"


def print_any_text() -> None:
    """Make stdout and stderr replace what they cannot encode: signs in MARKS by ASCII, anything else by an escape."""
    codecs.register_error(ERRORS, _replace)
    # A closed stream (`>&-`, some service managers) is None to Python, which print() accepts and sys.stdout.write not.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not None (closed), and not another object, as pytest installs
            stream.reconfigure(errors=ERRORS)


def printable(text: str) -> str:
    r"""`text` with surrogates escaped: byte 0xE9 of a name that is not UTF-8 becomes the six characters \udce9.

    Control characters other than line feed and tab are escaped too. In a name from somebody else's run folder they
    would control the terminal on which a report is read.
    """
    return text.encode("utf-8", "backslashreplace").decode().translate(CONTROLS)


def markdown_text(text: str) -> str:
    """`text` on one line, with the characters escaped that would end a Markdown table cell or start HTML."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end].translate(MARKS)
    # Escapes keep different surrogates apart; "?" would make two different file names look the same.
    return lacking.encode("ascii", "backslashreplace").decode(), error.end
