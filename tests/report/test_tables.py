"""The numbers of the error table: paper, ours over seeds, difference, interval, and "not run"."""

import io
import json

import pytest
from rich.console import Console

from tencrop.evaluation.errors import wilson_interval
from tencrop.evaluation.results import load_result, save_result
from tencrop.records.run_folder import read_run_manifest
from tencrop.report import tables
from tencrop.report.collect import collect, collect_evaluations
from tencrop.report.tables import error_rows, html_table, markdown_table


def rows_of(path):
    return error_rows(collect([path]))


def test_one_run_beside_a_claim(print_table, evaluated_run):
    print_table()
    top1, top5 = rows_of(evaluated_run(num_wrong=8))
    assert top1.cells == (
        "lenet5_digits", "center 32 of 36 px", "top-1", "1.5", "1.60", "+0.10",
        "{:.2f} – {:.2f}".format(*(100 * bound for bound in wilson_interval(8, 500))), "500", "1", "",
    )  # fmt: skip
    assert top5.published is None and top5.cells[5] == "–"


def test_over_seeds(print_table, evaluated_run, tmp_path):
    print_table()
    for seed, num_wrong in ((0, 4), (1, 6), (2, 11)):
        evaluated_run(f"seed={seed}", num_wrong=num_wrong)
    top1, _ = rows_of(tmp_path / "runs")
    assert top1.measured.mean == pytest.approx(1.4)
    assert top1.measured.std == pytest.approx(0.7211, abs=1e-4)
    assert top1.cells[4:6] == ("1.40 ± 0.72", "−0.10")
    assert top1.interval == pytest.approx([100 * bound for bound in wilson_interval(7, 500)])
    assert top1.about == "500 images · 3 seeds, mean ± s.d."


def test_claimed_protocol_that_was_not_run_comes_first(print_table, evaluated_run):
    print_table(protocol={"name": "five_crop"})
    rows = rows_of(evaluated_run())
    assert [row.protocol for row in rows] == ["five_crop"] * 2 + ["center 32 of 36 px"] * 2
    assert rows[0].cells[3:6] == ("1.5", "not run", "–")
    assert rows[2].published is None


@pytest.mark.parametrize("word", ["optimizer.lr=0.5", "training.epochs=2", "training.max_steps=3", "image_size=36"])
def test_another_recipe_than_that_of_the_file_which_claims_is_not_compared(print_table, evaluated_run, word):
    print_table()
    assert [row.published for row in rows_of(evaluated_run(word))] == [None, None]


def test_printed_accuracies_are_shown_as_errors_with_the_printed_decimals(print_table, evaluated_run):
    print_table(top1="98.50", UNIT="accuracy")
    assert [row.cells[3] for row in rows_of(evaluated_run())] == ["1.50", "–"]


def test_fewer_images_or_classes_are_not_compared(print_table, evaluated_run):
    print_table()
    folder = evaluated_run()
    (folder / "predictions" / "center.safetensors").unlink()  # which a result is compared with
    manifest, result = folder / "manifest.json", folder / "predictions" / "center.result.json"
    for path, change in (
        (manifest, lambda facts: facts["data"]["splits"]["val"].update(num_samples=100)),
        (manifest, lambda facts: facts["data"]["splits"]["train"].update(num_samples=100)),
        (manifest, lambda facts: facts["data"]["classes"].pop()),
        (result, lambda facts: facts.update(num_images=100)),
    ):
        before = path.read_text()
        facts = load_result(path) if path == result else {**read_run_manifest(folder)}
        change(facts)
        save_result(path, facts) if path == result else path.write_text(json.dumps(facts))
        assert [row.published for row in rows_of(folder) if row.measured] == [None, None], facts
        path.write_text(before)
    assert rows_of(folder)[0].published == "1.5"


def test_an_unfinished_training_is_not_compared(print_table, evaluated_run, digits_config, run_maker):
    print_table()
    folder = evaluated_run()
    assert run_maker(digits_config(), is_complete=False) == folder
    rows = rows_of(folder)
    assert [row.published for row in rows] == ["1.5", None, None, None], "the claimed protocol is not run"
    assert rows[0].measured is None and rows[2].measured is not None


@pytest.mark.parametrize("changes", [{"DATA": "imagenet"}, {"SPLIT": "test"}, {"overrides": ["training.epochs=2"]}])
def test_a_row_about_other_data_or_another_recipe_is_not_compared(print_table, evaluated_run, changes):
    print_table(**changes)
    assert all(row.published is None for row in rows_of(evaluated_run()))


def test_other_sizes_than_the_recipes_are_not_the_claimed_protocol(print_table, evaluated_run):
    print_table()
    rows = rows_of(evaluated_run("protocol.side=40"))
    assert rows[0].measured is None and rows[2].protocol == "center 32 of 40 px" and rows[2].published is None


def test_results_of_no_run_stand_last_marked_and_beside_no_claim(print_table, evaluated_run, loose_result):
    print_table()
    folder = evaluated_run()
    evaluations = collect_evaluations([loose_result(folder, label="ensemble of 2", top1_error=0.01)])
    rows = error_rows(collect([folder]), evaluations)
    assert [row.published for row in rows] == ["1.5", None, None, None]
    assert rows[2].cells == (
        "ensemble of 2 (lenet5 on digits)", "center 32 of 36 px, softmax", "top-1", "–", "1.00", "–",
        "{:.2f} – {:.2f}".format(*(100 * bound for bound in wilson_interval(5, 500))), "500", "1",
        "of no run folder: evaluations/loose",
    )  # fmt: skip


def test_unfinished_run_is_marked(digits_config, run_maker):
    folder = run_maker(digits_config(), is_complete=False)
    (top1, _) = rows_of(folder)
    assert top1.measured is None and top1.note == "unfinished"


def test_terminal_fits_80_columns(print_table, evaluated_run):
    print_table()
    console = Console(width=80, record=True, file=io.StringIO())
    tables.print_table(rows_of(evaluated_run()), console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "1.60" in text and "top-5" in text


def test_html_and_markdown_escape(evaluated_run):
    rows = rows_of(evaluated_run("name='a<b>|c'"))
    assert "a&lt;b&gt;|c" in html_table(rows) and "<b>|c" not in html_table(rows)
    markdown = markdown_table(rows)
    assert "a&lt;b>\\|c" in markdown
    assert {line.replace("\\|", "").count("|") for line in markdown.splitlines()} == {11}


@pytest.fixture
def another_result():
    """another_result(folder, stem, ...): a copy of a run's center-crop result under another name, with changes."""

    def add(folder, stem, **changes):
        predictions = folder / "predictions"
        facts = load_result(predictions / "center.result.json")
        (predictions / f"{stem}.safetensors").write_bytes((predictions / "center.safetensors").read_bytes())
        save_result(predictions / f"{stem}.result.json", facts | {"scores": f"{stem}.safetensors"} | changes)

    return add


def test_a_run_is_one_seed_however_often_it_was_evaluated(evaluated_run, another_result):
    folder = evaluated_run()
    another_result(folder, "center-copy")  # of a checkpoint under another name
    another_result(folder, "center-bicubic", filter="bicubic")
    rows = [row for row in rows_of(folder) if row.k == 1]
    assert [row.protocol for row in rows] == ["center 32 of 36 px", "center 32 of 36 px, filter bicubic"]
    assert [(row.measured.n, row.measured.std) for row in rows] == [(1, None)] * 2


def test_an_unfinished_run_counts_by_its_latest_checkpoint(digits_config, evaluated_run, run_maker, another_result):
    folder = evaluated_run(num_wrong=8)
    run_maker(digits_config(), is_complete=False)
    for stem, step in (("center-b", 30), ("center-a", 20), ("center-c", 10)):
        another_result(folder, stem, step=step, num_images=500 + step)
        (folder / "predictions" / f"{stem}.safetensors").unlink()
    top1, _ = rows_of(folder)
    assert top1.measured.n == 1 and top1.num_images == 530


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bf16"},
        {"mean": [0.0, 0.0, 0.0]},
        {"std": [1.0, 1.0, 1.0]},
        {"filter": "bicubic"},
        {"loader": "ffcv"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_was_measured_otherwise_than_trained_is_named_and_not_compared(
    print_table, evaluated_run, another_result, change
):
    print_table()
    folder = evaluated_run()
    config = collect([folder])[0].runs[0].config
    same = {"precision": config["training"]["precision"], **config["normalization"], "filter": "bilinear"}
    same["loader"] = config["data"]["loader"]
    assert all(change[key] != same[key] for key in change)
    another_result(folder, "center", **same)
    assert rows_of(folder)[0].published == "1.5"
    another_result(folder, "center", **(same | change))
    rows = [row for row in rows_of(folder) if row.measured]
    ((key, value),) = change.items()
    assert [row.published for row in rows] == [None, None] and rows[0].protocol.endswith(f", {key} {value}")
