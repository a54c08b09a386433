"""A run folder is made once, found again, and refused where going on would mix two runs."""

import json
import subprocess
import sys

import pytest
import yaml
from omegaconf import OmegaConf

from tencrop.config import Config, UserError, run_path, typed
from tencrop.config.launch import RANKS
from tencrop.records.run_folder import finish, is_complete, read_manifest, run_folder
from tencrop.training.metric_rows import NO_ROWS, append_row


def test_stands_alone(make_config, data_manifest):
    config = make_config("seed=2")
    folder = run_folder(config, data_manifest)
    assert folder == run_path(config) and folder.name.startswith("seed2-")
    assert {path.name for path in folder.iterdir()} >= {"config.yaml", "manifest.json", "code.diff", "checkpoints"}
    assert typed(OmegaConf.load(folder / "config.yaml"), Config) == config
    manifest = read_manifest(folder)
    assert manifest["result"]["status"] == "running" and len(manifest["sessions"]) == 1


def test_same_command_continues(make_config, data_manifest):
    config = make_config()
    folder = run_folder(config, data_manifest)
    written = (folder / "config.yaml").read_bytes()
    finish(folder, status="interrupted", weights_sha256=None)
    assert run_folder(config, data_manifest) == folder
    assert len(read_manifest(folder)["sessions"]) == 2
    finish(folder, status="complete", weights_sha256="ab" * 32)
    assert is_complete(folder)
    run_folder(config, data_manifest)
    assert len(read_manifest(folder)["sessions"]) == 2  # nothing was continued
    assert (folder / "config.yaml").read_bytes() == written


def test_other_code_is_refused_unless_told(make_config, data_manifest):
    folder = run_folder(make_config(), data_manifest)
    manifest = read_manifest(folder)
    manifest["sessions"][0]["code"]["learning_sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"another version of the code.*allow_other_code=true"):
        run_folder(make_config(), data_manifest)
    run_folder(make_config("allow_other_code=true"), data_manifest)
    finish(folder, status="complete", weights_sha256="ab" * 32)
    manifest = read_manifest(folder)
    manifest["sessions"][-1]["code"]["learning_sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    run_folder(make_config(), data_manifest)  # complete: there is nothing to continue


@pytest.mark.parametrize(("split", "key"), [("train", "store_fingerprint"), ("val", "source_fingerprint")])
@pytest.mark.parametrize("status", ["interrupted", "complete"])
def test_other_data_are_refused(make_config, data_manifest, split, key, status):
    finish(run_folder(make_config(), data_manifest), status=status, weights_sha256=None)
    data_manifest["splits"][split][key] = "other"
    with pytest.raises(UserError, match=rf"data\.root=.*{split} images"):
        run_folder(make_config(), data_manifest)


def test_two_processes_do_not_write_to_one_run(make_config, data_manifest):
    folder = run_folder(make_config(), data_manifest)
    code = f"from pathlib import Path; from tencrop.records.run_folder import _lock; _lock(Path({str(folder)!r}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert other.returncode == 1 and "another process is writing" in other.stderr


@pytest.mark.parametrize("name", RANKS)
def test_other_ranks_write_nothing(make_config, data_manifest, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    folder = run_folder(make_config(), data_manifest)
    finish(folder, status="complete", weights_sha256=None)
    assert not folder.exists()


def test_place_that_cannot_be_written(make_config, data_manifest, tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot write .*runs=DIR"):
        run_folder(make_config(), data_manifest)


def test_the_digest_of_the_metrics_is_of_when_the_run_was_complete(make_config, data_manifest):
    folder = run_folder(make_config(), data_manifest)
    digest = append_row(folder / "metrics.jsonl", {"epoch": 1, "split": "val"}, NO_ROWS)
    finish(folder, status="complete", weights_sha256="ab" * 32)
    assert read_manifest(folder)["result"]["metrics_digest"] == digest
    append_row(folder / "metrics.jsonl", {"epoch": 2, "split": "val"}, digest)
    finish(folder, status="complete", weights_sha256="ab" * 32)  # train.py once more, which trains nothing
    assert read_manifest(folder)["result"]["metrics_digest"] == digest


@pytest.mark.parametrize("content", [b"[]", b"\xff", b"{}", b"[" * 100_000, b"9" * 5000])
def test_a_broken_manifest_is_named(make_config, data_manifest, content):
    folder = run_folder(make_config(), data_manifest)
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json: not the manifest of a run folder \(.*\); bring it back"):
        is_complete(folder)


def test_a_manifest_of_the_first_runs(make_config, data_manifest):
    folder = run_folder(make_config(), data_manifest)
    manifest = read_manifest(folder)
    manifest["result"] = {"status": "complete", "weights_sha256": "ab" * 32}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert read_manifest(folder)["result"]["ema_sha256"] is None


def test_folder_without_manifest(tmp_path):
    with pytest.raises(UserError, match="not the manifest of a run folder"):
        read_manifest(tmp_path)


def test_secrets_stay_out_of_the_folder(make_config, data_manifest, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "+tracker.api_key=hunter22hunter22"])
    folder = run_folder(make_config("data.source=https://me:hunter22@h/x"), data_manifest)
    for path in folder.rglob("*.*"):
        assert not path.is_file() or "hunter22" not in path.read_text(), path
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["source"] == "https://***@h/x"
