"""Run folders are found and grouped into experiments; broken ones are reported in one sentence."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from tencrop.cli.choices import CONF
from tencrop.config import UserError
from tencrop.evaluation.results import load_result, save_result
from tencrop.records.run_folder import read_run_manifest
from tencrop.report.claims import _composed, claims_of_run
from tencrop.report.collect import Broken, Experiment, Run, collect, collect_evaluations, input_folders
from tencrop.training.metric_rows import NO_ROWS, append_row
from typed import stand_in

ROOT = Path(__file__).parents[2]


def test_runs_are_grouped_by_what_was_learned(evaluated_run, tmp_path):
    folders = [evaluated_run("seed=1"), evaluated_run("seed=0"), evaluated_run("optimizer.lr=0.5")]
    experiments = collect([tmp_path / "runs", folders[0]])  # named twice, counted once
    assert sorted(len(experiment.runs) for experiment in experiments) == [1, 2]
    assert [run.seed for run in max(experiments, key=lambda experiment: len(experiment.runs)).runs] == [0, 1]
    assert all(experiment.name.startswith("lenet5_digits (") for experiment in experiments)  # with its hash
    assert {experiment.name.partition(", ")[2] for experiment in experiments} == {
        "optimizer.lr=0.004)",
        "optimizer.lr=0.5)",
    }


def test_reproduction_within_a_run_is_not_another_run(evaluated_run, tmp_path):
    folder = evaluated_run()
    inner = folder / "reproduced" / "lenet5_digits" / folder.name
    inner.mkdir(parents=True)
    for name in ("config.yaml", "manifest.json"):
        (inner / name).write_text((folder / name).read_text())
    (experiment,) = collect([tmp_path / "runs"])
    assert [run.folder for run in experiment.runs] == [folder]


def test_metrics_and_results(evaluated_run):
    folder = evaluated_run(num_wrong=10)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')  # cut short by a kill
    run = collect([folder])[0].runs[0]
    assert run.metrics[-1]["split"] == "val"
    (result,) = run.results
    assert result.errors == {1: 10 / 500, 5: 0.0} and result.num_images == 500
    assert result.protocol == "center" and result.scores.exists()


def test_results_of_weights_trained_further_are_left_out(evaluated_run):
    folder = evaluated_run()
    manifest = read_run_manifest(folder)
    manifest["result"]["weights_sha256"] = "f" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    run = collect([folder])[0].runs[0]
    assert len(run.results) == 1 and run.valid_results == []


def test_a_best_checkpoint_that_was_replaced_by_a_better_is_left_out(evaluated_run):
    folder = evaluated_run()
    path = folder / "predictions" / "center.result.json"
    facts = load_result(path)
    errors = {40: 0.3, 80: 0.2, 120: 0.2}  # the first of equal checkpoints is kept
    for step in (40, 80, 120):
        save_result(path, facts | {"selection": "best", "step": step})
        rows = [{"step": at, "epoch": at / 40, "split": "minival", "top1_error": errors[at]} for at in errors]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert len(collect([folder])[0].runs[0].valid_results) == (step == 80), step
    (folder / "metrics.jsonl").unlink()  # without the log no better checkpoint is known
    manifest = read_run_manifest(folder)
    manifest["result"]["metrics_digest"] = None
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert len(collect([folder])[0].runs[0].valid_results) == 1


def test_refusals(evaluated_run, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        collect([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no run folder .* and no result"):
        collect([tmp_path / "empty"])
    folder = evaluated_run()
    path = folder / "predictions" / "center.result.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in facts.items() if key != "num_images"}))
    with pytest.raises(UserError, match=r"center\.result\.json: is damaged.*; run evaluate\.py again"):
        collect([folder])
    path.write_text("{")
    with pytest.raises(UserError, match="no result of evaluate"):
        collect([folder])


def test_a_seed_counts_once(evaluated_run, tmp_path):
    folder = evaluated_run()
    again = tmp_path / "runs" / "zz_again" / folder.name
    again.mkdir(parents=True)
    for name in ("config.yaml", "manifest.json"):
        (again / name).write_text((folder / name).read_text())
    (experiment,) = collect([tmp_path / "runs"])
    assert [run.folder for run in experiment.runs] == [folder]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", ""),
        ("config.yaml", "a: &a [1]\nb: *a"),
        ("manifest.json", "[]"),
        ("manifest.json", "[" * 100_000),
        ("metrics.jsonl", '{"epoch": 1, "split": "val"}\n[]\n'),
        ("metrics.jsonl", '{"epoch": 1, "split": "val", "loss": ' + "9" * 5000 + "}\n"),
        ("predictions/center.result.json", "{"),
    ],
)
def test_a_broken_run_is_named_and_the_others_are_collected(evaluated_run, tmp_path, name, content):
    whole, broken = evaluated_run("seed=0"), evaluated_run("seed=1")
    (broken / name).write_text(content)
    errors: list[Broken] = []
    (experiment,) = collect([tmp_path / "runs"], errors.append)
    assert [run.folder for run in experiment.runs] == [whole]
    assert [str(error).startswith(f"{broken / name}: ") for error in errors] == [True]
    assert errors[0].path == broken and errors[0].name == f"{broken.parent.name}/{broken.name}"
    assert errors[0].reason.startswith(f"broken: {name}: ") and "\n" not in errors[0].reason
    with pytest.raises(UserError, match=re.escape(f"{broken / name}: ")):
        _ = collect([broken])[0].runs[0].metrics


@pytest.mark.parametrize("missing", ["config.yaml", "manifest.json"])
def test_a_run_that_was_copied_in_part_is_named(evaluated_run, tmp_path, missing):
    whole, broken = evaluated_run("seed=0"), evaluated_run("seed=1")
    (broken / missing).unlink()
    errors: list[Broken] = []
    (experiment,) = collect([tmp_path / "runs"], errors.append)
    assert [run.folder for run in experiment.runs] == [whole] and [error.path for error in errors] == [broken]
    assert errors[0].reason.startswith(f"broken: {missing}: ")
    shutil.rmtree(broken / "checkpoints")  # other programs write a config.yaml or manifest.json too
    collect([tmp_path / "runs"])


def test_a_report_marks_broken_runs_and_exits_with_2(evaluated_run, tmp_path):
    whole, broken = evaluated_run("seed=0"), evaluated_run("seed=1")
    (broken / "config.yaml").write_text("")
    command = [sys.executable, str(ROOT / "report.py"), f"runs=[{tmp_path}/runs]", f"output={tmp_path}/page"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 2, finished.stderr
    assert finished.stderr.startswith(f"error: left out of the report: {broken}/config.yaml: ")
    assert finished.stderr.count("\n") == 1
    name, reason = f"{broken.parent.name}/{broken.name}", "broken: config.yaml: "
    markdown, html = ((tmp_path / "page" / f"report.{kind}").read_text() for kind in ("md", "html"))
    assert whole.name in markdown and whole.name in html
    (line,) = (line for line in markdown.splitlines() if broken.name in line)
    assert line.startswith(f"| {name} | – |") and reason in line and line.count("|") == 11
    assert f"<b>{name}</b> <small>{reason}" in html
    assert f"{name}  {reason}" in finished.stdout
    assert str(broken) not in markdown + html, "the report must not reveal where the runs are stored"


def test_a_report_that_cannot_be_written_is_refused_before_the_runs_are_read(evaluated_run, tmp_path, read_only):
    evaluated_run()
    (tmp_path / "page").mkdir()
    place = read_only(tmp_path / "page")
    command = [sys.executable, str(ROOT / "report.py"), f"runs=[{tmp_path}/none]", f"output={place}"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 2 and finished.stdout == "" and finished.stderr.count("\n") == 1
    assert finished.stderr.startswith(f"error: {place}/report.html: cannot be written (the file system is read-only)")


def test_rows_that_a_complete_run_has_lost_are_missed(evaluated_run):
    folder = evaluated_run()
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    digest = NO_ROWS
    with path.open("a") as file:
        for row in rows:
            digest = append_row(file, row, digest)
    manifest = read_run_manifest(folder)
    manifest["result"]["metrics_digest"] = digest
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert collect([folder])[0].runs[0].metrics == rows
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="its last rows are missing"):
        _ = collect([folder])[0].runs[0].metrics


def test_results_outside_run_folders(evaluated_run, loose_result, tmp_path):
    folder = evaluated_run()
    loose = loose_result(folder, label="ensemble of 2")
    (evaluation,) = collect_evaluations(
        [tmp_path, loose]
    )  # the run's own result is left out; a result that is found twice is read once
    assert evaluation.folder == loose and evaluation.name == "ensemble of 2 (lenet5 on digits)"
    assert collect([loose]) == [], "a folder that holds only results is no error"


def test_input_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert input_folders(["a", "b"]) == [Path("a"), Path("b")]
    assert input_folders([]) == [Path("runs")], "so that the error names the missing folder"
    Path("evaluations").mkdir()
    assert input_folders([]) == [Path("evaluations")]
    Path("runs").mkdir()
    assert input_folders([]) == [Path("runs"), Path("evaluations")]


def data_of(num_train: int, num_val: int, num_classes: int) -> dict:
    """The data section of a run's manifest, of so many images of ImageNet."""
    counts = {"train": num_train, "val": num_val}
    splits = {split: {"num_samples": number, "source_fingerprint": "0" * 64} for split, number in counts.items()}
    return {"name": "imagenet", "splits": splits, "classes": ["c"] * num_classes}


IMAGENET, SIMULATED, SUBSET = data_of(1_281_167, 50_000, 1000), data_of(1000, 1000, 1000), data_of(128_000, 5_000, 100)


@pytest.mark.parametrize(
    ("changes", "data", "is_shown"),
    [
        ([], IMAGENET, True),
        (["seed=3", "hardware=gpu8", "protocol=ten_crop", "tracker=none"], IMAGENET, True),
        (["optimizer.lr=0.2"], IMAGENET, False),
        (["optimizer=adamw", "training.epochs=2"], IMAGENET, False),
        (["model.name=resnet26"], IMAGENET, False),
        (["model.kwargs.zero_init_last=true"], IMAGENET, False),
        (["image_size=160"], IMAGENET, False),
        (["training.max_steps=3"], IMAGENET, False),
        (["data=imagefolder"], IMAGENET, False),
        ([], SIMULATED, False),
        ([], SUBSET, False),
        ([], {}, False),
    ],
)
def test_a_claim_stands_beside_whole_runs_of_its_own_recipe_alone(composed, changes, data, is_shown):
    config = dataclasses.asdict(composed("model=resnet50", *changes))
    run = stand_in(Run, config=config, manifest={"data": data})
    assert (Experiment("resnet50", (run,)).claims != []) == is_shown
    other = stand_in(Run, config=config, manifest={"data": SUBSET})
    assert Experiment("resnet50", (run, other)).claims == [], "one of two is not of the claim's data"


def test_hidden_files_are_no_results(evaluated_run):
    folder = evaluated_run()
    (folder / "predictions" / "._center.result.json").write_bytes(b"\0\5\xff")
    (experiment,) = collect([folder])
    assert len(experiment.runs[0].results) == 1


def test_claims_are_looked_up_while_a_command_runs(composed):
    """hydra.compose() refuses to."""
    config = dataclasses.asdict(composed("model=resnet50"))
    _composed.cache_clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        run = stand_in(Run, config=config, manifest={"data": IMAGENET})
        assert Experiment("resnet50", (run,)).claims != []
        assert GlobalHydra.instance().hydra is before


def test_configurations_that_cannot_be_read_claim_nothing(composed):
    config = dataclasses.asdict(composed("model=resnet50"))
    for change in ({"unknown": 1}, {"short_side": "${image_size}"}, {"training": None}, {"data": None}):
        run = stand_in(Run, config={**config, **change}, manifest={"data": IMAGENET})
        assert Experiment("resnet50", (run,)).claims == []
    run = stand_in(Run, config={}, manifest={"data": IMAGENET})
    assert Experiment("resnet50", (run,)).claims == []


def test_a_mistake_in_an_error_table_is_named(composed, tmp_path):
    (tmp_path / "broken.yaml").write_text("data: imagenet\nrows: []\n")
    with pytest.raises(UserError, match=r"broken\.yaml"):
        claims_of_run(dataclasses.asdict(composed("model=resnet50")), IMAGENET, tmp_path)


def test_one_broken_result_leaves_the_others(evaluated_run, loose_result):
    loose = loose_result(evaluated_run())
    (loose / "broken.result.json").write_text("{}")
    with pytest.raises(UserError, match=r"broken\.result\.json"):
        collect_evaluations([loose])
    broken: list[Broken] = []
    (evaluation,) = collect_evaluations([loose], broken.append)
    assert evaluation.result.num_images == 500 and "broken.result.json" in str(broken)


def test_a_result_of_another_runs_weights_is_refused(evaluated_run):
    """Of a run that is not complete, or of best.ckpt, the manifest has no hash to compare with."""
    folder = evaluated_run()
    path = folder / "predictions" / "center.result.json"
    facts = load_result(path)
    save_result(path, facts | {"run_id": read_run_manifest(folder)["run_id"]})
    assert len(collect([folder])[0].runs[0].results) == 1
    save_result(path, facts | {"run_id": "0" * 32})
    with pytest.raises(UserError, match=r"center\.result\.json: is of another run's weights"):
        collect([folder])


def test_metrics_that_cannot_be_read_cost_one_run(evaluated_run, tmp_path):
    folder = evaluated_run("seed=1")
    evaluated_run("seed=2")
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    broken: list[Broken] = []
    (experiment,) = collect([tmp_path / "runs"], broken.append)
    assert [run.seed for run in experiment.runs] == [2] and "metrics.jsonl: is not a file" in str(broken)
