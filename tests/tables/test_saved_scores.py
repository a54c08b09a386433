"""A table with an ensemble is printed from score files alone, after the checkpoints have been deleted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tencrop.config import Config
from tencrop.evaluation.evaluate import evaluate_scores
from tencrop.report.paper_tables import report_tables

FIVE = {"name": "five_crop", "average": "softmax"}
ROWS: list[dict[str, Any]] = [
    {"id": "one", "row": "one crop", "top1": None, "top5": None, "experiment": "lenet5_digits"},
    {"id": "five", "row": "five crops", "top1": None, "top5": None, "experiment": "lenet5_digits", "protocol": FIVE},
    {"id": "both", "row": "both", "top1": None, "top5": None, "members": [{"row": "one"}, {"row": "five"}]},
]  # fmt: skip


def test_one_network_under_two_protocols_without_its_checkpoint(
    finished_run: Callable[..., Path],
    write_table: Callable[..., Path],
    composed: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_table(rows=ROWS)

    def printed() -> dict[str, list[str]]:
        """The cells after each row's protocol, by the row's name."""
        assert report_tables("digits", [], tmp_path / "report", folder) == 0
        lines = capsys.readouterr().out.splitlines()
        found = {row["row"]: next(line for line in lines if line.startswith(row["row"] + "  ")) for row in ROWS}
        return {name: line.split("  ") for name, line in found.items()}

    # One crop is wrong on images 0 to 9, five crops on 0 to 29; where they disagree, the right one is surer.
    run = finished_run("seed=0", num_wrong=10)
    assert finished_run("seed=0", "protocol=five_crop", num_wrong=30) == run
    (run / "checkpoints").mkdir(exist_ok=True)
    assert not list((run / "checkpoints").glob("*.ckpt"))
    before = printed()
    assert any("2.00" in cell for cell in before["one crop"]) and any("6.00" in cell for cell in before["five crops"])
    assert not any("2.00" in cell for cell in before["both"])
    joint = evaluate_scores(
        composed(), [run / "predictions" / f"{name}.safetensors" for name in ("five_crop", "center")]
    )
    assert joint.result["top1_error"] == 0.02 and joint.result["label"] == "1 network in 2 evaluations"
    after = printed()
    assert any("2.00" in cell for cell in after["both"]) and after["five crops"] == before["five crops"]
    assert any("evaluations/" in cell for cell in after["both"])
    # another network's five crops are not "both"
    other = finished_run("seed=1", "protocol=five_crop", num_wrong=30)
    joint.out.joinpath(f"{joint.result['scores'].removesuffix('.safetensors')}.result.json").unlink()
    evaluate_scores(composed(), [run / "predictions/center.safetensors", other / "predictions/five_crop.safetensors"])
    assert not any("2.00" in cell for cell in printed()["both"])
