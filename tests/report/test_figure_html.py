"""Figures in a run's folder are shown on the page; those of other weights are not."""

import base64
import json
import re

import pytest
from matplotlib.figure import Figure

from tencrop.config import UserError
from tencrop.report.collect import collect
from tencrop.report.figure_html import run_figures, saved_figure
from tencrop.report.page import write_report
from tencrop.visualization.drawing import save_figure
from tencrop.visualization.record import Record


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
    assert run_figures(run) == [], "a run of which nothing was drawn has none"
    draw(folder, "occlusion", run.manifest["result"]["weights_sha256"], caption="<b>what</b> is lost")
    draw(folder, "architecture", None)
    draw(folder, "retrieval", "0f" * 32)
    html = "\n".join(run_figures(run))
    assert re.findall(r"<b>(\w+)\.</b>", html) == ["Architecture", "Occlusion"]
    assert "&lt;b&gt;what&lt;/b&gt; is lost" in html and "<code>python -m &lt;x&gt;</code>" in html
    pictures = [base64.b64decode(found) for found in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", html)]
    assert pictures == [(folder / "figures" / f"{name}.svg").read_bytes() for name in ("architecture", "occlusion")]
    page = write_report(collect([folder]), tmp_path / "report")[0].read_text()
    assert html in page and "<h3>Visualizations" in page


def test_a_broken_record_is_named(evaluated_run) -> None:
    folder = evaluated_run()
    draw(folder, "occlusion", None)
    (folder / "figures" / "occlusion.json").write_text('{"format": "tencrop figure 0"}')
    draw(folder, "architecture", None)
    html = "\n".join(run_figures(collect([folder])[0].runs[0]))
    assert re.search(r"occlusion\.json: not a record .* draw it again", html)
    assert "<b>Architecture.</b>" in html, "what is whole is shown"


@pytest.mark.parametrize("content", [b"<svg/>", b"", None])
def test_a_figure_that_is_not_what_was_drawn_is_named(evaluated_run, content) -> None:
    folder = evaluated_run()
    draw(folder, "occlusion", None)
    path = folder / "figures" / "occlusion.svg"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"occlusion\.svg: is missing, or not the figure that was drawn"):
        saved_figure(path)
    html = "\n".join(run_figures(collect([folder])[0].runs[0]))
    assert "No figure occlusion to show" in html and "<img" not in html


def test_a_record_of_earlier_code_has_no_digest_of_its_figure(evaluated_run) -> None:
    folder = evaluated_run()
    draw(folder, "occlusion", None)
    path = folder / "figures" / "occlusion.json"
    facts = json.loads(path.read_text())
    assert facts.pop("svg_sha256")
    path.write_text(json.dumps(facts))
    assert "<b>Occlusion.</b>" in saved_figure(path.with_suffix(".svg"))
