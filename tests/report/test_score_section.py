"""The page's section on saved scores, and a damaged score file that costs one row."""

import re

import pytest
from safetensors.numpy import load_file

from tencrop.report.collect import Broken, collect, collect_evaluations
from tencrop.report.page import write_report
from tencrop.report.score_section import score_sections, shown_result


def sections(experiments, evaluations=(), *, ks=(1, 5)):
    broken: list[Broken] = []
    return score_sections(experiments, evaluations, ks=ks, on_broken=broken.append), broken


def test_the_page_shows_classes_pairs_and_reliability(evaluated_run, tmp_path):
    experiments = collect([evaluated_run(num_wrong=8), evaluated_run("seed=1", num_wrong=5)])
    found, broken = sections(experiments, ks=(1, 3, 10))
    assert not broken and [section.name for section in found] == ["lenet5_digits, seed 0"]
    html, markdown = write_report(experiments, tmp_path / "report", scores=found)
    text = html.read_text()
    part = text[text.index("Errors by class, and calibration") :]
    plain = " ".join(re.sub(r"<[^>]+>", " ", part).split())
    assert "top-1 1.60" in plain and "top-3" in plain and "top-10 0.00" in plain
    assert "Most confused classes class taken for images 0 1 8" in plain
    assert "over 15 bins of equal width of the confidence in the top-1 class" in plain
    assert part.count("data:image/svg+xml;base64,") == 1
    assert "| 0 | 1 | 8 |" in markdown.read_text()


def test_a_damaged_score_file_costs_one_row(evaluated_run, tmp_path):
    good, bad = evaluated_run(num_wrong=8), evaluated_run("name=other", num_wrong=8)
    path = bad / "predictions" / "center.safetensors"
    content, logits = path.read_bytes(), load_file(path)["logits"].tobytes()
    # the last bit of one logit: no error changes, and nothing but the digest tells
    path.write_bytes(content.replace(logits, bytes([logits[0] ^ 1]) + logits[1:]))
    experiments = collect([good, bad])
    found, broken = sections(experiments)
    assert [section.name for section in found] == ["lenet5_digits"]
    (one,) = broken
    assert "center.safetensors: is a broken score file" in one.reason and one.name.startswith("other/")
    html, _ = write_report(experiments, tmp_path / "report", broken=broken, scores=found)
    assert "is a broken score file" in html.read_text() and "Most confused classes" in html.read_text()


def test_results_without_their_scores_have_no_section(evaluated_run, loose_result):
    run = evaluated_run()
    loose = loose_result(run, label="copied")  # a result.json alone
    (run / "predictions" / "center.safetensors").unlink()
    assert sections(collect([run]), collect_evaluations([loose])) == ([], [])


def test_results_outside_run_folders_have_a_section(evaluated_run, loose_result):
    run = evaluated_run()
    loose = loose_result(run, label="ensemble of 2")
    (loose / "center.safetensors").write_bytes((run / "predictions" / "center.safetensors").read_bytes())
    (found,), _ = sections([], collect_evaluations([loose]))
    assert found.name == "ensemble of 2 (lenet5 on digits)" and found.report.names[0] == "class 0"


def test_the_shown_result_is_the_configured_protocols(evaluated_run):
    (experiment,) = collect([evaluated_run()])
    result = shown_result(experiment.runs[0])
    assert result is not None and result.protocol == "center"


@pytest.mark.parametrize("name", ["<script>alert(1)</script>"])
def test_names_are_escaped(evaluated_run, tmp_path, name):
    experiments = collect([evaluated_run(f"name='{name}'")])
    found, _ = sections(experiments)
    for path in write_report(experiments, tmp_path / "report", scores=found):
        assert "<script" not in path.read_text()
