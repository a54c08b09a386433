"""What a manifest says of its run, and what it never says."""

import json
import subprocess
import sys
from importlib.machinery import ModuleSpec

from tencrop.records import provenance


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


def test_holds_what_a_reader_needs_and_no_environment(make_config, data_manifest, monkeypatch):
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
    monkeypatch.setattr(sys, "argv", ["/where/tencrop/seeing/__main__.py", "figure=patches"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("tencrop.seeing.__main__", None))
    assert provenance.command_line() == "python -m tencrop.seeing figure=patches"


def test_code_version_of_a_checkout(tmp_path, monkeypatch):
    package = checkout(tmp_path)
    git(tmp_path, "remote", "add", "origin", "https://me:hunter22@example.org/tencrop.git")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    clean = provenance.code_version()
    assert len(clean["revision"]) == 40 and clean["diff_sha256"] is None
    assert clean["remote"] == "https://***@example.org/tencrop.git"

    (package / "report" / "page.py").write_text("title = 'b'\n")
    reworded = provenance.code_version()
    assert reworded["diff_sha256"] and reworded["learning_sha256"] == clean["learning_sha256"]

    (package / "models" / "net.py").write_text("width = 65\n")
    assert provenance.code_version()["learning_sha256"] != clean["learning_sha256"]


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


def test_package_installed_below_a_checkout_is_not_that_checkout(tmp_path, monkeypatch):
    checkout(tmp_path)
    installed = tmp_path / ".venv" / "tencrop"
    installed.mkdir(parents=True)
    monkeypatch.setattr(provenance, "PACKAGE", installed)
    assert provenance.code_version()["revision"] is None
    assert provenance.code_diff() == ""
