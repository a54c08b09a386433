"""Error rates are logged to the tracker exactly once, also after an interruption."""

import os
from pathlib import Path
from unittest import mock

import pytest

from tencrop.records import tracked_errors
from tencrop.records.run_folder import run_folder
from tencrop.records.tracked_errors import track_result
from tencrop.records.tracking import build_logger

RESULT = {"scores": "center.safetensors", "averaging": "softmax", "step": 40, "top1_error": 0.25, "top5_error": 0.0}
RESULT |= {"weights_sha256": "ab" * 32, "source_fingerprint": "cd" * 32}


def track(config, run_dir, result=RESULT, logger=None):
    """The top-1 errors that a call of track_result hands to the run's tracker."""
    with mock.patch.object(tracked_errors, "log_errors", wraps=tracked_errors.log_errors) as log:
        track_result(config, run_dir, result, ["protocol"], [["center"]], logger=logger)
    return [call.args[1]["top1_error"] for call in log.call_args_list if call.args[0] is not None]


def test_once(make_config, data_manifest):
    config = make_config("tracker=tensorboard")
    run_dir = run_folder(config, data_manifest)
    assert track(config, run_dir) == [0.25]
    assert track(config, run_dir) == []
    assert track(config, run_dir, RESULT | {"top1_error": 0.5}) == [0.5]


def test_an_open_logger_logs_even_if_errors_json_has_the_result(make_config, data_manifest):
    config = make_config("tracker=tensorboard")
    run_dir = run_folder(config, data_manifest)
    track(config, run_dir)
    assert track(config, run_dir, logger=build_logger(config, run_dir)) == [0.25]


def test_a_damaged_errors_json_counts_as_missing(make_config, data_manifest):
    config = make_config("tracker=tensorboard")
    run_dir = run_folder(config, data_manifest)
    (run_dir / "tracking").mkdir()
    for text in ("", "[1]", "{", "[" * 100_000):
        (run_dir / "tracking" / "errors.json").write_text(text)
        assert track(config, run_dir) == [0.25]


def test_an_untracked_run_stays_untracked(make_config, data_manifest):
    config = make_config()
    run_dir = run_folder(config, data_manifest)
    assert track(config, run_dir) == [] and not (run_dir / "tracking").exists()


def test_a_named_pipe_as_errors_json_is_not_read(make_config, data_manifest, monkeypatch):
    """Reading it would block forever; the result is logged again."""
    config = make_config("tracker=tensorboard")
    run_dir = run_folder(config, data_manifest)
    (run_dir / "tracking").mkdir(exist_ok=True)
    os.mkfifo(run_dir / "tracking" / "errors.json")
    monkeypatch.setattr(Path, "read_text", lambda path: pytest.fail(f"{path} was read"))
    assert track(config, run_dir) == [0.25]
    monkeypatch.undo()
    assert track(config, run_dir) == []
