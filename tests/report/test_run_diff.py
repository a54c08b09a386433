"""report.py diff=[A,B]: what differs between two runs, settings that affect training first."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tencrop.config import UserError
from tencrop.records.run_folder import read_run_manifest
from tencrop.report.run_diff import difference, read_record, report_difference


def tables(a, b) -> dict[str, list[Sequence[str]]]:
    """Rows by the first words of each table's title."""
    return {block.title: list(block.rows) for block in difference(read_record(a), read_record(b))}


def edit(folder, **changes) -> None:
    """Change the last session's record in a run's manifest: code={"revision": "ab"}, ..."""
    path = folder / "manifest.json"
    manifest: dict[str, Any] = {**read_run_manifest(folder)}
    for part, values in changes.items():
        manifest["sessions"][-1][part] |= values
    path.write_text(json.dumps(manifest))


def test_settings_that_affect_training_come_first(digits_config, run_maker, tmp_path, capsys):
    a = run_maker(digits_config())
    b = run_maker(digits_config("seed=1", "optimizer.lr=0.01", "+model.kwargs.in_chans=1", "log_every_steps=7"))
    assert report_difference([str(a), str(b)], output=tmp_path / "out") == 0
    found = tables(a, b)
    assert list(found) == [
        "Settings that affect training", "Other settings", "Code: no difference", "Packages: no difference",
        "Data: no difference", "Hardware: no difference",
    ]  # fmt: skip
    assert found["Settings that affect training"] == [
        ("optimizer.lr", "0.004", "0.01"),
        ("model.kwargs.in_chans", "–", "1"),
    ]
    assert found["Other settings"] == [("seed", "0", "1"), ("log_every_steps", "20", "7")]
    text, markdown = capsys.readouterr().out, (tmp_path / "out" / "difference.md").read_text()
    assert "optimizer.lr            0.004   0.01" in text and "| optimizer.lr | 0.004 | 0.01 |" in markdown


def test_code_packages_data_and_hardware(digits_config, run_maker):
    a, b = run_maker(digits_config()), run_maker(digits_config("seed=1"))
    edit(b, code={"learning_sha256": "ab" * 32}, packages={"torch": "9.9"}, hardware={"gpus": ["H100", "H100"]})
    path = b / "manifest.json"
    manifest = read_run_manifest(b)
    manifest["data"]["splits"]["train"] |= {"num_samples": 7, "source_fingerprint": "cd" * 32}
    path.write_text(json.dumps(manifest))
    found = tables(a, b)
    assert [(row[0], row[2]) for row in found["Code"]] == [("learning_sha256", "abababababab")]
    assert [(row[0], row[2]) for row in found["Packages"]] == [("torch", "9.9")]
    assert [(row[0], row[2]) for row in found["Data"]] == [
        ("train num_samples", "7"), ("train source_fingerprint", "cdcdcdcdcdcd"),
    ]  # fmt: skip
    assert [(row[0], row[2]) for row in found["Hardware"]] == [("gpus", "[H100, H100]")]


def test_a_resumed_run_names_what_each_session_had(digits_config, run_maker):
    a, b = run_maker(digits_config()), run_maker(digits_config("seed=1"))
    path = b / "manifest.json"
    manifest = read_run_manifest(b)
    manifest["sessions"].append(json.loads(json.dumps(manifest["sessions"][0])))
    manifest["sessions"][0]["packages"]["torch"] = "2.6.0"
    manifest["sessions"][1]["packages"]["torch"] = "2.7.0"
    path.write_text(json.dumps(manifest))
    assert tables(a, b)["Packages"][0][2] == "2.6.0, then 2.7.0"


def test_an_operation_that_only_one_run_switches_on_is_listed_once(digits_config, run_maker):
    a = run_maker(digits_config())
    b = run_maker(digits_config("augmentation.mixing.mixup_alpha=0.2", "augmentation.mixing.mix_group=8"))
    found = tables(a, b)
    assert {row[0] for row in found["Settings that affect training"]} == {
        "augmentation.mixing.mixup_alpha", "augmentation.mixing.mix_group",
    }  # fmt: skip
    assert "Other settings: no difference" in found


def test_what_is_no_run_is_refused(digits_config, run_maker, tmp_path):
    run = str(run_maker(digits_config()))
    with pytest.raises(UserError, match=r"diff=\[.*\]: takes two run folders, as diff=\[RUN_A,RUN_B\]"):
        report_difference([run], output=tmp_path / "out")
    with pytest.raises(UserError, match=r"diff=.*nowhere: is no run folder"):
        report_difference([run, str(tmp_path / "nowhere")], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
