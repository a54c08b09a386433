"""How text leaves the program, decided once: whatever a name holds, it can be printed and written.

Two things cannot be written as they are. A terminal or log that is not UTF-8 (a container without a locale, an
ISO locale) lacks the marks of our tables and letters of names; and a file name that is not UTF-8, as Windows archives
bring, holds surrogates, which no encoding takes. A verb calls `print_any_text` first; pages and figures take
`printable` names; JSON and YAML escape such characters by themselves. Imports nothing slow.
"""

from __future__ import annotations

import codecs
import io
import os
import sys

MARKS = str.maketrans({"–": "-", "−": "-", "±": "+-", "×": "x", "·": "-", "…": "...", "’": "'", "•": "*"})
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
ERRORS = "tencrop.printable"


def print_any_text() -> None:
    """From now on stdout and stderr replace what they cannot encode: our marks by ASCII, all else by an escape."""
    codecs.register_error(ERRORS, _replace)
    # A closed stream (`>&-`, some service managers) is None to Python, which print() accepts and sys.stdout.write not.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not somebody's own
            stream.reconfigure(errors=ERRORS)


def printable(text: str) -> str:
    r"""`text` in UTF-8's reach: the byte 0xE9 of a name that is not UTF-8 becomes the six characters \udce9.

    Control characters but line feed and tab are escaped, too: in a name of somebody else's run folder they would
    command the terminal on which a report is printed or read.
    """
    return text.encode("utf-8", "backslashreplace").decode().translate(CONTROLS)


def markdown_text(text: str) -> str:
    """`text` on one line, without what Markdown would take for a cell's end or for HTML."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end].translate(MARKS)
    # a name that is not UTF-8 has surrogates, which stay different from each other as escapes
    return lacking.encode("ascii", "backslashreplace").decode(), error.end
