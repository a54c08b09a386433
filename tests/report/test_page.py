"""The page loads nothing, escapes all text, and has the same bytes for the same runs."""

import json
import re
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError

from tencrop.records.run_folder import read_run_manifest
from tencrop.report.collect import collect, collect_evaluations
from tencrop.report.page import write_report
from tencrop.report.score_section import score_sections
from tencrop.report.templating import render
from typed import present


class Tags(HTMLParser):
    """Tags and attributes of a page; fails on a tag that is not closed."""

    def __init__(self, text):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == ["html"] or self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "line", "circle", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.open)


def test_page_of_several_experiments(evaluated_run, tmp_path):
    evaluated_run("seed=0")
    evaluated_run("seed=1")
    folder = evaluated_run("name=other", "optimizer.lr=0.5")
    html, markdown = write_report(collect([tmp_path / "runs"]), tmp_path / "report")
    text = html.read_text()
    tags = Tags(text).found
    assert sum(tag == "h2" for tag, _ in tags) == 3  # the comparison and two experiments
    assert sum(attributes.get("class") == "chart" for _, attributes in tags) == 6
    assert present(read_run_manifest(folder)["sessions"][0]["code"]["revision"])[:12] in text
    assert "1.60" in text and "1.60" in markdown.read_text()
    again = write_report(collect([tmp_path / "runs"]), tmp_path / "again")
    assert again[0].read_bytes() == html.read_bytes() and again[1].read_bytes() == markdown.read_bytes()


def test_nothing_is_fetched(evaluated_run, tmp_path):
    html, _ = write_report(collect([evaluated_run()]), tmp_path / "report")
    for _, attributes in Tags(html.read_text()).found:
        for name in ("src", "href", "srcset", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|<script", html.read_text())


def test_text_is_escaped(evaluated_run, tmp_path):
    hostile = "<script>alert(1)</script>"
    folder = evaluated_run(f"name='{hostile}'")
    html, markdown = write_report(collect([folder]), tmp_path / "report")
    assert "<script" not in html.read_text() and "<script" not in markdown.read_text()
    assert "&lt;script&gt;" in html.read_text()


def test_a_template_escapes_and_refuses_an_unknown_variable():
    hostile = "</p><img src=x onerror='a'>\""
    assert render("sentence.html", text=hostile) == "<p>&lt;/p&gt;&lt;img src=x onerror=&#39;a&#39;&gt;&#34;</p>"
    assert render("sentence.html", text=render("sentence.html", text="<")) == "<p><p>&lt;</p></p>"
    with pytest.raises(UndefinedError):
        render("sentence.html", texts="a")


def test_class_names_need_not_be_utf8(evaluated_run, tmp_path):
    folder = evaluated_run()
    manifest = json.dumps(read_run_manifest(folder))
    (folder / "manifest.json").write_text(manifest.replace('"3"', '"caf\\udce9"'))
    html, markdown = write_report(collect([folder]), tmp_path / "report")
    assert "caf\\udce9" in html.read_text(encoding="utf-8") and "caf?" not in html.read_text(encoding="utf-8")
    assert markdown.read_text(encoding="utf-8")


def test_a_run_that_has_just_started(digits_config, run_maker, tmp_path):
    folder = run_maker(digits_config(), is_complete=False)
    (folder / "metrics.jsonl").unlink()
    (folder / "checkpoints" / "last.ckpt").unlink()
    html, _ = write_report(collect([folder]), tmp_path / "report")
    text = html.read_text()
    Tags(text)
    assert "not run" in text and "Not trained" in text and "Not evaluated" in text


@pytest.mark.parametrize(
    ("budget", "state"),
    [
        (["training.epochs=9"], "interrupted, epoch 6 of 9"),
        (["training.epochs=null", "training.steps=1000"], "interrupted, step 240 of 1000"),
    ],
)
def test_an_interrupted_run_tells_how_far_it_is(digits_config, run_maker, tmp_path, budget, state):
    html, _ = write_report(collect([run_maker(digits_config(*budget), is_complete=False)]), tmp_path / "report")
    assert state in html.read_text()


def test_results_outside_run_folders(evaluated_run, loose_result, tmp_path):
    loose = loose_result(evaluated_run(), label="<ensemble> of 2", weights_sha256="ab" * 32 + " + " + "cd" * 32)
    for path in write_report([], tmp_path / "report", collect_evaluations([loose])):
        text = path.read_text()
        assert "Evaluated outside run folders" in text and "&lt;ensemble" in text and "<ensemble" not in text
        assert "abababababab + cdcdcdcdcdcd" in text and "a.ckpt + b.ckpt" in text and "evaluations/loose" in text


def test_a_page_with_the_statistics_of_scores(evaluated_run, tmp_path):
    experiments = collect([evaluated_run()])
    scores = score_sections(experiments, [], ks=(1, 5), on_broken=lambda broken: pytest.fail(str(broken)))
    first, again = (write_report(experiments, tmp_path / name, scores=scores)[0].read_text() for name in ("a", "b"))
    assert first == again
    sources = [attributes["src"] for tag, attributes in Tags(first).found if tag == "img"]
    assert all(source and source.startswith("data:") for source in sources)
