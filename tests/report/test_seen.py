"""Figures in a run's folder reach the page; those of other weights do not."""

import base64
import re

import pytest
from matplotlib.figure import Figure

from tencrop.config import UserError
from tencrop.report.collect import collect
from tencrop.report.page import write_report
from tencrop.report.seen import seen_figures
from tencrop.seeing.drawing import save_figure
from tencrop.seeing.record import Record


def draw(folder, name: str, weights: str | None, caption: str = "A caption.") -> None:
    save_figure(
        Figure(figsize=(1, 1)),
        folder / "figures",
        name,
        Record(name.title(), caption, "lenet5", weights, "python -m <x>"),
    )


def test_figures_of_the_final_weights_are_shown(evaluated_run, tmp_path) -> None:
    folder = evaluated_run()
    run = collect([folder])[0].runs[0]
    assert seen_figures(run) == "", "a run that nobody drew has none"
    draw(folder, "occlusion", run.manifest["result"]["weights_sha256"], caption="<b>what</b> is lost")
    draw(folder, "architecture", None)
    draw(folder, "retrieval", "0f" * 32)
    html = seen_figures(run)
    assert re.findall(r"<b>(\w+)\.</b>", html) == ["Architecture", "Occlusion"]
    assert "&lt;b&gt;what&lt;/b&gt; is lost" in html and "<code>python -m &lt;x&gt;</code>" in html
    pictures = [base64.b64decode(found) for found in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", html)]
    assert pictures == [(folder / "figures" / f"{name}.svg").read_bytes() for name in ("architecture", "occlusion")]
    page = write_report(collect([folder]), tmp_path / "report")[0].read_text()
    assert html in page and "What it sees" in page


def test_a_broken_record_is_named(evaluated_run) -> None:
    folder = evaluated_run()
    draw(folder, "occlusion", None)
    (folder / "figures" / "occlusion.json").write_text('{"format": "tencrop figure 0"}')
    with pytest.raises(UserError, match=r"occlusion\.json: not a record .* draw it again"):
        seen_figures(collect([folder])[0].runs[0])
