"""Names that look like markup are printed verbatim; throughputs keep three digits."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.progress import Progress

import tencrop
from tencrop.console import plain_column, plain_console, rate
from tencrop.data.preparation.verify import verify
from tencrop.evaluation.results import print_results

NAME = "p[/x] :apple: [bold]"


def test_strings_and_captions_are_plain():
    file = io.StringIO()
    console = plain_console(file=file, force_terminal=True, width=200, color_system=None)
    console.print(NAME)
    with Progress(plain_column("{task.description}"), console=console) as bar:
        bar.add_task(NAME)
    assert file.getvalue().count(NAME) >= 2


def test_cells_are_plain(capsys):
    result = {"label": NAME, "weights": "raw", "protocol": "center", "side": 32, "size": 32, "region": "whole"}
    result |= {"views": 1, "averaging": "softmax", "num_images": 4, "top1_error": 0.5, "top5_error": 0.0}
    result |= {"top1_interval": [0.1, 0.9], "top5_interval": [0.0, 0.6]}
    print_results([result], plain_console(width=200))
    assert NAME in capsys.readouterr().out


def test_folder_names_are_printed_verbatim(prepared_digits, tmp_path, capsys):
    (tmp_path / "p[").mkdir()
    (tmp_path / "p[" / "x]").symlink_to(prepared_digits)
    verify(tmp_path / "p[" / "x]", "digits")
    assert "p[/x]: as it was prepared" in capsys.readouterr().out


def test_every_console_is_plain():
    package = Path(tencrop.__file__).parent
    makes = re.compile(r"(?<!plain_)(?<!\w)(Console|TextColumn)\(")
    found = [path.name for path in package.rglob("*.py") if makes.search(path.read_text())]
    assert found == ["console.py"]


@pytest.mark.parametrize(
    ("images_per_s", "text"),
    [(12345.6, "12,346 images/s"), (100.4, "100 images/s"), (7.256, "7.26 images/s"), (0.03712, "0.0371 images/s")],
)
def test_rate(images_per_s, text):
    assert rate(images_per_s) == text


def test_a_reader_that_stops_early_does_not_end_the_work(tmp_path):
    """As `| head` does: rich's own console would end the process at the first table."""
    text = f"""
from pathlib import Path
from tencrop.console import plain_console
plain_console().print("a table")
print("a path", flush=True)
Path({str(tmp_path / "page")!r}).touch()
"""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", text], stdout=writer, stderr=subprocess.PIPE, timeout=900)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"") and (tmp_path / "page").exists()
