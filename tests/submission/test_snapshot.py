"""The snapshot of the code: which files, named by their content, whole or not at all."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tencrop.config import UserError
from tencrop.config.code import PACKAGE
from tencrop.submission import snapshot as snapshots
from tencrop.submission.snapshot import ROOT, snapshot_files, snapshot_folder, write_snapshot


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    if subprocess.run(["git", "-C", ROOT, "rev-parse"], capture_output=True).returncode:
        pytest.skip("not a git checkout")
    return snapshot_files("# cluster\n")


def test_the_snapshot_has_the_code_and_nothing_else(files):
    tops = {Path(name).parts[0] for name in files}
    assert {"src", "conf", "slurm", "train.py", "evaluate.py", "pyproject.toml"} <= tops
    assert not {"tests", "docs", "runs", ".git", ".venv"} & tops
    assert {path.name for path in PACKAGE.rglob("*.so")} == {Path(name).name for name in files if name.endswith(".so")}
    assert files["slurm/cluster.sh"] == b"# cluster\n"


def test_a_new_file_belongs_to_the_code_unless_git_ignores_it(checkout):
    (checkout / "conf" / "experiment" / "new.yaml").write_text("# new\n")
    (checkout / ".gitignore").write_text("ignored*\n*.so\n")
    (checkout / "conf" / "ignored.yaml").write_text("# ignored\n")
    (checkout / "report.py").unlink()
    program = "from tencrop.submission.snapshot import *; print(*snapshot_files(''), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": f"{checkout}/src"},
        capture_output=True,
        text=True,
    )
    names = set(done.stdout.splitlines())
    assert "conf/experiment/new.yaml" in names and not {"conf/ignored.yaml", "report.py"} & names, done.stderr


def test_the_code_in_the_snapshot_is_the_code_that_runs(files, tmp_path):
    folder = snapshot_folder(tmp_path, files)
    write_snapshot(folder, files)
    program = (
        "import json, tencrop; from tencrop.records.provenance import code_diff, code_version;"
        "print(json.dumps([tencrop.__file__, code_version(), code_diff()]))"
    )
    python = folder / ".venv" / "bin" / "python"
    done = subprocess.run(
        [python, "-c", program], env=os.environ | {"PYTHONPATH": f"{folder}/src"}, capture_output=True, check=True
    )
    file, version, diff = json.loads(done.stdout)
    assert file == f"{folder}/src/tencrop/__init__.py" and diff == files["code.diff"].decode()
    assert version == json.loads(files["snapshot.json"]) and version["revision"]  # of the checkout
    assert os.access(folder / "slurm" / "train.sbatch", os.X_OK) == os.access(ROOT / "slurm" / "train.sbatch", os.X_OK)


def test_the_same_code_is_written_once_and_a_changed_snapshot_is_refused(files, tmp_path):
    folder = snapshot_folder(tmp_path, files)
    write_snapshot(folder, files)
    before = folder.stat().st_ino
    write_snapshot(folder, files)
    assert folder.stat().st_ino == before and len(list(tmp_path.iterdir())) == 1
    (folder / "train.py").write_text("# edited")
    with pytest.raises(UserError, match=r"train.py: is not the file that was submitted"):
        write_snapshot(folder, files)


def test_a_snapshot_that_another_submission_writes_meanwhile_is_used(tmp_path, monkeypatch):
    files = {"train.py": b"# code"}
    folder, rename = snapshot_folder(tmp_path, files), os.rename

    def late(partial: Path, target: Path) -> None:
        shutil.copytree(partial, target, symlinks=True)  # by the other one
        rename(partial, target)

    monkeypatch.setattr(snapshots.os, "rename", late)
    assert not write_snapshot(folder, files)
    assert list(tmp_path.iterdir()) == [folder] and (folder / "train.py").read_bytes() == files["train.py"]


def test_a_snapshot_that_fails_leaves_nothing(files, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshots.shutil, "copymode", fail)
    with pytest.raises(OSError, match="No space"):
        write_snapshot(snapshot_folder(tmp_path, files), files)
    assert list(tmp_path.iterdir()) == []


def test_outside_a_checkout_there_is_nothing_to_submit(tmp_path):
    with pytest.raises(UserError, match=r"has no slurm/train.sbatch; submit with a checkout"):
        snapshot_files("", root=tmp_path)


def test_a_folder_without_git_is_named_with_the_reason(files, tmp_path):
    for name in ("src", "slurm"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    program = "from tencrop.submission.snapshot import snapshot_files; snapshot_files('')"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}/src"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "the files to submit are not known, because this is not a git checkout" in done.stderr
