"""A run folder is created once, found again, and refused if continuing would mix two runs."""

import json
import subprocess
import sys

import pytest
import yaml

from tencrop.cli.choices import CONF
from tencrop.cli.run_overrides import config_of_run
from tencrop.config import (
    UserError,
    run_path,
)
from tencrop.config.launcher import RANKS
from tencrop.config.run_config import read_config
from tencrop.records import provenance
from tencrop.records.provenance import installed_packages, sessions_of
from tencrop.records.run_folder import finish, is_complete, read_run_manifest, run_folder
from tencrop.report.page import _code, _hardware
from tencrop.training.metric_rows import NO_ROWS, append_row


def test_a_run_folder_is_self_contained(make_config, data_manifest):
    config = make_config("seed=2")
    folder = run_folder(config, data_manifest)
    assert folder == run_path(config) and folder.name.startswith("seed2-")
    assert {path.name for path in folder.iterdir()} >= {"config.yaml", "manifest.json", "code.diff", "checkpoints"}
    assert config_of_run(folder, [], conf=CONF) == config
    manifest = read_run_manifest(folder)
    assert manifest["result"]["status"] == "running" and len(manifest["sessions"]) == 1


def test_same_command_continues(make_config, data_manifest):
    config = make_config()
    folder = run_folder(config, data_manifest)
    written = (folder / "config.yaml").read_bytes()
    finish(folder, status="interrupted", weights_sha256=None)
    assert run_folder(config, data_manifest) == folder
    assert len(read_run_manifest(folder)["sessions"]) == 2
    finish(folder, status="complete", weights_sha256="ab" * 32)
    assert is_complete(folder)
    run_folder(config, data_manifest)
    assert len(read_run_manifest(folder)["sessions"]) == 2  # nothing was continued
    assert (folder / "config.yaml").read_bytes() == written


def test_training_again_without_a_checkpoint_adds_a_session(make_config, data_manifest, capsys):
    folder = run_folder(make_config(), data_manifest)
    finish(folder, status="complete", weights_sha256="ab" * 32)
    run_folder(make_config(), data_manifest, total_steps=12)
    manifest = read_run_manifest(folder)
    assert len(manifest["sessions"]) == 2 and manifest["result"]["status"] == "running"
    assert "was complete, but has no intact last checkpoint; training it again" in capsys.readouterr().err


def test_changed_packages_are_recorded_and_printed(make_config, data_manifest, monkeypatch, capsys):
    folder = run_folder(make_config(), data_manifest)
    assert not capsys.readouterr().err
    packages = installed_packages()
    monkeypatch.setattr(provenance, "installed_packages", lambda: packages | {"torch": "9.9"})
    run_folder(make_config(), data_manifest)
    assert f"torch was {packages['torch']}, is 9.9" in capsys.readouterr().err
    recorded = [session["packages"] for session in sessions_of(read_run_manifest(folder))]
    assert recorded == [packages, packages | {"torch": "9.9"}]


def test_packages_of_earlier_code_are_those_of_the_first_session(make_config, data_manifest):
    folder = run_folder(make_config(), data_manifest)
    manifest = read_run_manifest(folder)
    manifest["packages"] = manifest["sessions"][0].pop("packages") | {"torch": "1.0"}  # as earlier code wrote them
    (folder / "manifest.json").write_text(json.dumps(manifest))
    run_folder(make_config(), data_manifest)
    assert [one["packages"]["torch"] for one in sessions_of(read_run_manifest(folder))] == [
        "1.0",
        installed_packages()["torch"],
    ]


def test_a_complete_run_is_found_in_a_read_only_folder(make_config, data_manifest, tmp_path, read_only):
    finish(run_folder(make_config(), data_manifest), status="complete", weights_sha256="ab" * 32)
    config = make_config(f"runs={read_only(tmp_path / 'runs')}")
    folder = run_folder(config, data_manifest)
    assert folder == run_path(config)
    finish(folder, status="complete", weights_sha256="ab" * 32)
    with pytest.raises(UserError, match="cannot write"):
        run_folder(config, data_manifest, total_steps=12)


@pytest.mark.parametrize("name", ["checkpoints", "predictions"])
def test_an_unwritable_subfolder_is_refused(make_config, data_manifest, tmp_path, read_only, name):
    (tmp_path / "elsewhere").mkdir()
    folder = run_path(make_config())
    folder.mkdir(parents=True)
    (folder / name).symlink_to(read_only(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=rf"{name}/.* cannot be written \(the file system is read-only\); .*runs=DIR$"):
        run_folder(make_config(), data_manifest, total_steps=12)


def test_a_manifest_identifies_its_checkpoints(make_config, data_manifest):
    manifests = [
        read_run_manifest(run_folder(make_config(f"seed={seed}"), data_manifest, total_steps=12)) for seed in (1, 2, 1)
    ]
    assert [manifest["run_id"] == manifests[0]["run_id"] for manifest in manifests] == [True, False, True]
    assert manifests[0]["total_steps"] == 12 and manifests[0]["model"] == make_config().model.name


def test_a_complete_run_trained_again_must_end_with_the_same_weights(make_config, data_manifest):
    """Its last checkpoint is damaged, say; interruptions do not make it forget."""
    config = make_config()
    folder = run_folder(config, data_manifest, total_steps=12)
    assert finish(folder, status="complete", weights_sha256="ab" * 32) is None
    for _ in range(2):
        run_folder(config, data_manifest, total_steps=12)
        assert not is_complete(folder)
        assert finish(folder, status="interrupted", weights_sha256="12" * 32) is None
    assert len(read_run_manifest(folder)["sessions"]) == 3
    run_folder(config, data_manifest, total_steps=12)
    assert finish(folder, status="complete", weights_sha256="ab" * 32) is None
    ended = {"weights_sha256": "ab" * 32, "ema_sha256": None}
    assert read_run_manifest(folder)["result"] == {"status": "complete", **ended, "metrics_digest": None}

    run_folder(config, data_manifest, total_steps=12)
    sentence = finish(folder, status="complete", weights_sha256="cd" * 32)
    assert sentence is not None and "ended with other weights (cdcdcdcd instead of abababab)" in sentence
    result = read_run_manifest(folder)["result"]
    assert result["weights_sha256"] == "cd" * 32 and result["ended_with"]["weights_sha256"] == "ab" * 32


def test_other_code_is_refused_unless_allowed(make_config, data_manifest):
    folder = run_folder(make_config(), data_manifest)
    manifest = read_run_manifest(folder)
    manifest["sessions"][0]["code"]["learning_sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"another version of the code.*allow_other_code=true"):
        run_folder(make_config(), data_manifest)
    run_folder(make_config("allow_other_code=true"), data_manifest)
    finish(folder, status="complete", weights_sha256="ab" * 32)
    manifest = read_run_manifest(folder)
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


@pytest.mark.parametrize("status", ["interrupted", "complete"])
def test_other_initial_weights_are_refused_and_missing_ones_are_no_matter(make_config, data_manifest, status):
    init = {"checkpoint": "a.ckpt", "weights": "ema", "weights_sha256": "0" * 64}
    folder = run_folder(make_config(), data_manifest, init=init)
    finish(folder, status=status, weights_sha256=None)
    assert read_run_manifest(folder)["init"] == init
    assert run_folder(make_config(), data_manifest, init=init) == run_folder(make_config(), data_manifest)
    with pytest.raises(UserError, match=r"a\.ckpt holds other weights \(1{8}\) than .* was begun with \(0{8}\); give"):
        run_folder(make_config(), data_manifest, init=init | {"weights_sha256": "1" * 64})


def test_another_teacher_is_refused_while_the_run_needs_one(make_config, data_manifest):
    teacher = {"checkpoint": "a.ckpt", "weights": "raw", "weights_sha256": "0" * 64}
    folder = run_folder(make_config(), data_manifest, teacher=teacher)
    assert read_run_manifest(folder)["teacher"] == teacher
    with pytest.raises(
        UserError, match=r"training\.distill\.teacher: b\.ckpt holds other weights \(1{8}\) than .* was"
    ):
        run_folder(make_config(), data_manifest, teacher=teacher | {"checkpoint": "b.ckpt", "weights_sha256": "1" * 64})
    finish(folder, status="complete", weights_sha256=None)
    run_folder(make_config(), data_manifest)  # nothing is left to train


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


def test_an_unwritable_runs_folder_is_refused(make_config, data_manifest, tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot write .*runs=DIR"):
        run_folder(make_config(), data_manifest)


def test_the_metrics_digest_is_taken_when_the_run_completes(make_config, data_manifest):
    folder = run_folder(make_config(), data_manifest)
    with (folder / "metrics.jsonl").open("a") as file:
        digest = append_row(file, {"epoch": 1, "split": "val"}, NO_ROWS)
        finish(folder, status="complete", weights_sha256="ab" * 32)
        assert read_run_manifest(folder)["result"]["metrics_digest"] == digest
        append_row(file, {"epoch": 2, "split": "val"}, digest)
    finish(folder, status="complete", weights_sha256="ab" * 32)  # train.py once more, which trains nothing
    assert read_run_manifest(folder)["result"]["metrics_digest"] == digest


@pytest.mark.parametrize("content", [b"[]", b"\xff", b"{}", b"[" * 100_000, b"9" * 5000])
def test_a_broken_manifest_is_named(make_config, data_manifest, content):
    folder = run_folder(make_config(), data_manifest)
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json: not the manifest of a run folder \(.*\); restore it"):
        is_complete(folder)


def test_a_changed_manifest_is_refused(make_config, data_manifest):
    folder = run_folder(make_config(), data_manifest)
    finish(folder, status="complete", weights_sha256="ab" * 32)
    path, manifest = folder / "manifest.json", read_run_manifest(folder)
    started = manifest["sessions"][0]["started"]
    path.write_text(path.read_text().replace(started, f"2001{started[4:]}"))
    with pytest.raises(UserError, match=r"manifest\.json: was changed or damaged after it was written; restore it"):
        read_run_manifest(folder)
    path.write_text(json.dumps(manifest))  # as earlier code wrote it
    assert read_run_manifest(folder) == manifest


def test_a_failure_of_git_is_printed_recorded_and_shown(make_config, data_manifest, monkeypatch, capsys):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    folder = run_folder(make_config(), data_manifest)
    assert "recorded as not known: git failed" in capsys.readouterr().err
    code = read_run_manifest(folder)["sessions"][0]["code"]
    assert "safe.directory" in code["not_known"] and code["revision"] is None
    assert "# not known" in (folder / "code.diff").read_text()
    assert _code(code).startswith("not known (git failed") and "outside git" not in _code(code)
    hardware = read_run_manifest(folder)["sessions"][0]["hardware"] | {"gpus": [], "not_known": "GPUs: why"}
    assert _hardware(hardware).startswith("not known: GPUs: why; ")


def test_a_manifest_of_the_first_runs(make_config, data_manifest):
    folder = run_folder(make_config(), data_manifest)
    manifest = read_run_manifest(folder)
    result = {"status": "complete", "weights_sha256": "ab" * 32}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "result": result}))
    assert read_run_manifest(folder)["result"]["ema_sha256"] is None


def test_folder_without_manifest(tmp_path):
    with pytest.raises(UserError, match="not the manifest of a run folder"):
        read_run_manifest(tmp_path)


def test_secrets_stay_out_of_the_folder(make_config, data_manifest, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "+tracker.api_key=hunter22hunter22"])
    folder = run_folder(make_config("data.source=https://me:hunter22@h/x"), data_manifest)
    for path in folder.rglob("*.*"):
        assert not path.is_file() or "hunter22" not in path.read_text(), path
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["source"] == "https://***@h/x"


def test_a_configuration_that_was_changed_is_refused(make_config, data_manifest):
    """It says how the images of an evaluation are prepared, and what `reproduce` trains."""
    folder = run_folder(make_config(), data_manifest)
    path, written = folder / "config.yaml", yaml.safe_load((folder / "config.yaml").read_text())
    for change in ({"seed": 7}, {"short_side": 40}, {"normalization": {"mean": [0, 0, 0], "std": [1, 1, 1]}}):
        path.write_text(yaml.safe_dump(written | change))
        for read in (lambda: read_config(folder), lambda: run_folder(make_config(), data_manifest)):
            with pytest.raises(UserError, match=r"config\.yaml: does not match the manifest beside it"):
                read()
    path.unlink()
    with pytest.raises(UserError, match=r"config\.yaml: .*it is missing.*restore it"):
        run_folder(make_config(), data_manifest)
    assert len(read_run_manifest(folder)["sessions"]) == 1


@pytest.mark.parametrize("loader", ["beton", "ffcv", "torch"])
def test_the_loader_of_a_run_is_read_as_it_was_written(make_config, data_manifest, loader):
    """Also by the digest: without its format the file of a run with stock ffcv would speak of our own loader."""
    folder = run_folder(make_config(f"data.loader={loader}"), data_manifest)
    assert config_of_run(folder, [], conf=CONF).data.loader == read_config(folder)["data"]["loader"] == loader
    written = yaml.safe_load((folder / "config.yaml").read_text())
    del written["config_format"]
    (folder / "config.yaml").write_text(yaml.safe_dump(written))
    with pytest.raises(UserError, match=r"config\.yaml: does not match the manifest beside it"):
        read_config(folder)


def test_location_dependent_keys_may_be_edited(make_config, data_manifest):
    folder = run_folder(make_config(), data_manifest)
    written = yaml.safe_load((folder / "config.yaml").read_text())
    written["data"] |= {"root": "elsewhere", "source": "there"}
    (folder / "config.yaml").write_text(yaml.safe_dump(written | {"hardware": {"devices": 8}, "runs": "here"}))
    assert read_config(folder)["data"]["root"] == "elsewhere"
    manifest = read_run_manifest(folder)
    del manifest["config_sha256"]  # earlier code's
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.yaml").write_text(yaml.safe_dump(written | {"seed": 7}))
    assert read_config(folder)["seed"] == 7


def test_checkpoints_without_a_manifest_are_refused(make_config, data_manifest):
    """A new manifest would say that they are another run's, and every later command refuse them."""
    folder = run_folder(make_config(), data_manifest)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"whole")
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no manifest\.json that tells which run wrote them; restore it"):
        run_folder(make_config(), data_manifest)
    assert not (folder / "manifest.json").exists()
