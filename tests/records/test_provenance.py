"""Provenance records code, packages, hardware and data, and never environment variables."""

import json
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec

import pytest

import tencrop
from tencrop.records import provenance
from tencrop.report.page import _code
from typed import present


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def checkout(folder):
    """A checkout with the package's layout and one commit."""
    package = folder / "src" / "tencrop"
    (package / "models").mkdir(parents=True)
    (package / "report").mkdir()
    (package / "models" / "net.py").write_text("width = 64\n")
    (package / "report" / "page.py").write_text("title = 'a'\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return package


def test_contains_what_a_reader_needs_and_no_environment(make_config, data_manifest, monkeypatch):
    monkeypatch.setenv("TENCROP_TEST_VARIABLE", "only-in-the-environment")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # as of a script
    monkeypatch.setattr(sys, "argv", ["/where/train.py", "seed=3", "data.source=https://me:hunter22@h/x"])
    facts = provenance.provenance(make_config("seed=3"), data_manifest)
    text = json.dumps(facts)
    assert "only-in-the-environment" not in text and "hunter22" not in text
    assert facts["session"]["command"] == "python train.py seed=3 'data.source=https://***@h/x'"
    assert facts["seeds"] == {"seed": 3}
    assert facts["data"]["splits"]["val"] == {
        "num_samples": 500,
        "source_fingerprint": "val" * 8,
        "store_fingerprint": "val" * 9,
    }
    assert {"python", "torch", "timm"} <= facts["session"]["packages"].keys()
    assert facts["session"]["hardware"]["num_cores"] >= 1


def test_the_command_of_a_module_names_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/where/tencrop/visualization/__main__.py", "figure=patches"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("tencrop.visualization.__main__", None))
    assert provenance.command_line() == "python -m tencrop.visualization figure=patches"


def test_code_version_of_a_checkout(tmp_path, monkeypatch):
    package = checkout(tmp_path)
    git(tmp_path, "remote", "add", "origin", "https://me:hunter22@example.org/tencrop.git")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    clean = provenance.code_version()
    assert len(present(clean["revision"])) == 40 and clean["diff_sha256"] is None
    assert clean["remote"] == "https://***@example.org/tencrop.git"

    (package / "report" / "page.py").write_text("title = 'b'\n")
    reworded = provenance.code_version()
    assert reworded["diff_sha256"] and reworded["learning_sha256"] == clean["learning_sha256"]

    (package / "models" / "net.py").write_text("width = 65\n")
    assert provenance.code_version()["learning_sha256"] != clean["learning_sha256"]


def test_files_left_by_an_editor_do_not_change_the_code_hash(tmp_path, monkeypatch):
    package = checkout(tmp_path)
    monkeypatch.setattr(provenance, "PACKAGE", package)
    clean = provenance.code_version()
    (package / "models" / "._net.py").write_bytes(b"\0\5")
    (package / "models" / ".#net.py").symlink_to("me@host.1:2")
    (package / "models" / ".ipynb_checkpoints").mkdir()
    (package / "models" / ".ipynb_checkpoints" / "net-checkpoint.py").write_text("width = 63\n")
    assert provenance.code_version() == clean


def test_diff_applies_and_has_new_files(tmp_path, monkeypatch):
    package = checkout(tmp_path)
    monkeypatch.setattr(provenance, "PACKAGE", package)
    assert provenance.code_diff() == ""
    (package / "models" / "net.py").write_text("width = 96\n")
    (package / "models" / "new.py").write_text("depth = 8\n")
    (tmp_path / "notes.txt").write_text("not code\n")
    diff = provenance.code_diff()
    assert "notes" not in diff
    (package / "models" / "new.py").unlink()
    git(tmp_path, "checkout", "-q", ".")
    subprocess.run(["git", "-C", str(tmp_path), "apply"], input=diff.encode(), check=True)
    assert (package / "models" / "net.py").read_text() == "width = 96\n"
    assert (package / "models" / "new.py").read_text() == "depth = 8\n"


@pytest.mark.parametrize("problem", ["owner", "no git", "damaged"])
def test_failing_git_is_not_mistaken_for_unchanged_code(problem, tmp_path, monkeypatch):
    package = checkout(tmp_path)
    monkeypatch.setattr(provenance, "PACKAGE", package)
    clean = provenance.code_version()
    if problem == "owner":
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    elif problem == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        (tmp_path / ".git" / "index").write_bytes(b"DIRC")
    words = {"owner": f"safe.directory {tmp_path}", "no git": "cannot be run", "damaged": "git failed: "}[problem]
    found = provenance.code_version()
    assert words in found["not_known"] and found["revision"] is None and found["diff_sha256"] is None
    assert found["learning_sha256"] == clean["learning_sha256"] and "not_known" not in clean
    diff = provenance.code_diff()
    assert diff.startswith("# not known") and words in diff and diff.count("\n") == 1


def test_variables_of_another_repository_are_not_obeyed(tmp_path, monkeypatch):
    """Within a hook git sets GIT_DIR, which it prefers to the folder that it is told."""
    package = checkout(tmp_path / "own")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    own = provenance.code_version()
    checkout(tmp_path / "other")
    git(tmp_path / "other", "commit", "-q", "--allow-empty", "-m", "another revision")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other" / ".git" / "index"))
    assert provenance.code_version() == own and provenance.code_diff() == ""


def test_unknown_facts_are_reported_as_unknown(session_of):
    before, now = session_of(revision="ab" * 20), session_of(revision=None, not_known="git failed: why")
    assert provenance.differences(before, now) == [f"revision was {'ab' * 20}, is unknown (git failed: why)"]
    assert provenance.differences(before, session_of(revision=None)) == [f"revision was {'ab' * 20}, is None"]


@pytest.fixture
def session_of():
    def build(**code):
        return {"code": {"learning_sha256": "c", **code}, "hardware": {}, "packages": {}}

    return build


def test_the_layout_of_a_session_is_recorded_and_compared(make_config, data_manifest):
    before, now = (
        provenance.provenance(make_config(*words), data_manifest)["session"]
        for words in (
            ["hardware=ddp_cpu2", "training.global_batch=16"],
            ["hardware=cpu", "training.global_batch=16", "hardware.max_micro_batch=4"],
        )
    )
    line = "layout was 2 devices, each 1 micro-batch of 8 images, is 1 device, 4 micro-batches of 4 images"
    assert provenance.differences(before, now) == [line]
    del before["layout"]  # as in runs of earlier code
    assert provenance.differences(before, now) == []


def test_a_checkout_without_a_commit_has_no_revision_and_all_its_files_are_new(tmp_path, monkeypatch):
    package = checkout(tmp_path)
    shutil.rmtree(tmp_path / ".git")
    git(tmp_path, "init", "-q")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    found = provenance.code_version()
    assert found["revision"] is None and found["diff_sha256"] and "not_known" not in found
    assert "width = 64" in provenance.code_diff()


def test_gpus_that_torch_does_not_find_are_recorded_as_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(provenance, "DRIVER", tmp_path / "none")
    assert "not_known" not in provenance._hardware()
    monkeypatch.setattr(provenance, "DRIVER", tmp_path)
    assert "GPUs" in provenance._hardware()["not_known"]
    for none in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert "not_known" not in provenance._hardware()


def test_a_package_without_a_version_is_recorded_as_text(tmp_path, monkeypatch):
    folder = tmp_path / "broken_thing-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: Broken-Thing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert provenance.installed_packages()["broken-thing"] == "unknown"


def test_package_installed_below_a_checkout_is_not_that_checkout(tmp_path, monkeypatch, session_of):
    checkout(tmp_path)
    installed = tmp_path / ".venv" / "tencrop"
    installed.mkdir(parents=True)
    monkeypatch.setattr(provenance, "PACKAGE", installed)
    found = provenance.code_version()
    assert found["revision"] is None and found["installed"] == tencrop.__version__
    said = f"installed package, version {tencrop.__version__}"
    assert provenance.code_diff() == f"# not known whether the code was changed: {said}\n"
    before, now = session_of(revision="ab" * 20), session_of(revision=None, installed="1.2")
    assert provenance.differences(before, now)[0].endswith("is that of an installed package (1.2)")
    assert _code(found).startswith(said)


def test_a_copy_of_a_checkout_without_git_is_not_recorded_as_unchanged(tmp_path, monkeypatch):
    package = checkout(tmp_path)
    shutil.rmtree(tmp_path / ".git")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    found = provenance.code_version()
    assert found["revision"] is None and "installed" not in found and _code(found).startswith("outside git")
    assert provenance.code_diff() == "# not known whether the code was changed: no git repository\n"


def test_the_command_of_an_installed_program_is_what_was_typed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/venv/bin/tencrop", "train", "seed=3"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert provenance.command_line() == "tencrop train seed=3"
