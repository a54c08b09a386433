"""Any name or table can be printed to output that is not UTF-8, and written into a page."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tencrop.config.documents import check_shape
from tencrop.printable import printable
from tencrop.records import provenance

ROOT = Path(__file__).parents[1]
NOT_UTF8 = os.fsdecode(b"caf\xe9")
VERB = """
import os, sys
from rich.table import Table
from tencrop.config import Config
from tencrop.cli.command import command
from tencrop.console import plain_console

@command("train", Config)
def main(config):
    print("1.5 ± 0.2 – 3×3")
    print("名 é", os.fsdecode(b"caf\\xe9"), file=sys.stderr)
    table = Table("…")
    table.add_row("× é")
    plain_console().print(table)
    return 0

sys.argv = ["train.py", "experiment=lenet5_digits"]
main()
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_command_prints_in_any_encoding(encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", VERB], cwd=ROOT, env=environment, capture_output=True, timeout=900)
    out, err = (text.decode(encoding) for text in (done.stdout, done.stderr))
    assert done.returncode == 0, err
    assert {
        "ascii": "1.5 +- 0.2 - 3x3",
        "latin-1": "1.5 ± 0.2 - 3×3",
        "utf-8": "1.5 ± 0.2 – 3×3",
    }[encoding] in out
    assert {"ascii": "\\u540d \\xe9", "latin-1": "\\u540d é", "utf-8": "名 é"}[encoding] + " caf\\udce9" in err
    assert ("+" if encoding != "utf-8" else "┏") in out  # the table's corner


def test_an_error_before_a_command_starts_prints_in_any_encoding():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "train.py", f"no_such_{NOT_UTF8}=1"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr


def test_records_are_readable_in_any_locale():
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    program = (
        "import sys; from tencrop.config.documents import parse_json\n"
        "assert sys.getfilesystemencoding() == 'ascii'\n"
        "assert parse_json(b'\"3 \\\\u00d7 3\"', str) == '3 \\xd7 3'"
    )
    subprocess.run([sys.executable, "-c", program], env=os.environ | plain, check=True, timeout=900)


def test_names_that_differ_stay_different():
    names = [os.fsdecode(b"caf\xe9"), os.fsdecode(b"caf\xe8"), "café"]
    assert [printable(name) for name in names] == ["caf\\udce9", "caf\\udce8", "café"]


def test_a_name_does_not_command_the_terminal():
    assert printable("a\x1b]0;title\x07\x9b2J\r\n\tb") == "a\\x1b]0;title\\x07\\x9b2J\\x0d\n\tb"


def test_a_command_with_an_unencodable_name_is_recorded_readably(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", f"data.root=/{NOT_UTF8}"])
    check_shape(provenance.command_line(), str)


def test_a_closed_output_is_no_traceback():
    command = ["sh", "-c", f"exec {sys.executable} -m tencrop.complexity model=lenet5 >&-"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert (done.returncode, done.stderr) == (0, "")
