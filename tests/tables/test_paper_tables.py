"""report.py table=NAME: its terminal output and files, and that it does not import torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tencrop.config import UserError
from tencrop.report import paper_tables
from tencrop.report.paper_tables import report_tables
from tencrop.tables.reading import table_names

ROOT = Path(__file__).parents[2]
SLOW = {"torch", "torchvision", "timm", "pytorch_lightning", "ffcv", "matplotlib", "scipy"}


def run(*words: str, cwd: Path, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, str(ROOT / "report.py"), *words], cwd=cwd, capture_output=True, text=True, timeout=900
    )


def test_all_tables_are_printed_and_written_without_torch(tmp_path: Path) -> None:
    result = run("table=all", cwd=tmp_path, flags=("-X", "importtime"))
    assert result.returncode == 0
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "tencrop" in imported and not SLOW & imported
    assert "VGG, table 3: one test scale" in result.stdout and "worse" not in result.stdout
    written = {path.name for path in (tmp_path / "report" / "tables").iterdir()}
    assert written == {f"{name}.{suffix}" for name in table_names() for suffix in ("md", "csv", "tex", "html")}


def test_a_missing_table_is_reported_in_one_sentence(tmp_path: Path) -> None:
    result = run("table=vgg_tabel3", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(
        "error: table=vgg_tabel3: there is no conf/errors/vgg_tabel3.yaml; did you mean vgg_table3"
    )
    assert result.stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_table_question_mark_lists_names_with_titles(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert report_tables("?", [], tmp_path) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == table_names() and lines["vgg_table3"] == "VGG, table 3: one test scale"
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_stops_early_hears_no_traceback(tmp_path: Path) -> None:
    command = f"{sys.executable} {ROOT / 'report.py'} table=all output={tmp_path} | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert (result.returncode, result.stderr, len(result.stdout.splitlines())) == (0, "", 1)


def test_runs_are_printed_next_to_the_papers_numbers(
    finished_run: Callable[..., Path],
    write_row: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = finished_run(num_wrong=10)
    errors = write_row(top1="2.0", top5="0.5")
    assert report_tables("digits", [str(tmp_path / "runs")], tmp_path / "report", errors) == 0
    printed = capsys.readouterr().out
    assert "2.00 / 0.00" in printed and "reproduced* / better*" in printed and f"lenet5_digits/{folder.name}" in printed
    for suffix in ("md", "csv", "tex", "html"):
        assert "2.00" in (tmp_path / "report" / "tables" / f"digits.{suffix}").read_text()


def test_runs_are_read_without_torch(finished_run: Callable[..., Path], tmp_path: Path) -> None:
    finished_run(num_wrong=10)
    code = (
        "import sys; from pathlib import Path; from tencrop.report.collect import read_run;"
        f" run = read_run(next(Path({str(tmp_path)!r}).glob('runs/*/seed0-*')));"
        " assert run.results and run.title_of(run.results[0]); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=900)


def test_a_broken_run_is_left_out_and_reported(
    finished_run: Callable[..., Path],
    write_row: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = finished_run()
    (folder / "config.yaml").write_text("seed: [")
    assert report_tables("digits", [str(tmp_path / "runs")], tmp_path / "report", write_row()) == 2
    output = capsys.readouterr()
    assert "not run" in output.out and output.err.startswith(f"error: left out of the tables: {folder}/config.yaml")


def test_a_place_that_cannot_be_written_is_found_before_runs_are_read(tmp_path, read_only, monkeypatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(paper_tables, "match_runs", lambda *_, **__: pytest.fail("runs were read"))
    with pytest.raises(UserError, match=r"cannot be written \(the file system is read-only\); .* output=DIR$"):
        report_tables("vgg_table3", [], read_only(tmp_path / "out"))
