"""The wheel, installed outside the checkout: every command works there as in the checkout, and without it."""

import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tencrop import __version__
from tencrop.config.code import LEARNING, code_sha256

ROOT = Path(__file__).parents[1]
NEEDED = ("src", "conf", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info", ".*")
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "checkout" / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / "checkout" / name)
    pip, plain = [sys.executable, "-m", "pip", "-q"], ["--no-deps", "--no-index"]
    build = [*pip, "wheel", *plain, "--no-build-isolation", "-w", str(folder), str(folder / "checkout")]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *plain, "--target", str(folder / "site"), str(wheel)], check=True)
    shutil.rmtree(folder / "checkout")
    return folder / "site"


def run(site: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)


def test_the_wheel_contains_conf_the_compiled_modules_and_the_same_code(site):
    package = site / "tencrop"
    files = {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("[!.]*.yaml")}
    assert filecmp.cmpfiles(ROOT / "conf", package / "conf", files, shallow=False)[1:] == ([], [])
    modules = {path.name.split(".")[0] for path in package.glob("data/native/*.so")}
    assert modules == {"_decode", "_index", "_mapped", "_reduce"}
    assert code_sha256(package, LEARNING) == code_sha256(ROOT / "src" / "tencrop", LEARNING)


def test_the_installed_program_lists_its_commands_and_runs_them_anywhere(site, tmp_path):
    tencrop = str(site / "bin" / "tencrop")
    listed = run(site, tencrop, "--help", cwd=tmp_path).stdout
    assert all(f"tencrop {name} " in listed for name in ("prepare", "train", "evaluate", "export", "report"))
    composed = run(site, tencrop, "train", "model=lenet5", "--cfg", "job", cwd=tmp_path)
    assert composed.returncode == 0 and "image_size: 32" in composed.stdout, composed.stderr
    refused = run(site, tencrop, "evaluate", "weights=/dev/null", "data=digits", cwd=tmp_path)
    assert refused.returncode == 2 and "there is no such file" in refused.stderr, refused.stderr
    refused = run(site, tencrop, "train", "data=digits", cwd=tmp_path)
    assert refused.returncode == 2 and "prepare it with: tencrop prepare data=digits" in refused.stderr, refused.stderr
    refused = run(site, tencrop, "trian", cwd=tmp_path)
    assert refused.returncode == 2 and "there is no such command; choose one of prepare, train" in refused.stderr
    reported = run(site, tencrop, "report", f"runs={tmp_path}", cwd=tmp_path)
    assert reported.returncode == 2 and "holds no run folder" in reported.stderr


def test_an_installed_package_is_recorded_as_installed(site, tmp_path):
    program = (
        "import tencrop; from tencrop.records.provenance import code_version, code_diff; print(tencrop.__file__);"
        "print(code_version()['installed'], code_version()['revision'], code_diff())"
    )
    said = run(site, sys.executable, "-c", program, cwd=tmp_path).stdout
    assert said.startswith(str(site)) and f"{__version__} None # not known whether" in said


def test_a_copy_of_the_code_alone_reports_the_missing_conf(site, tmp_path):
    shutil.copytree(site / "tencrop", tmp_path / "tencrop", ignore=shutil.ignore_patterns("conf"))
    for words in (["train", "model=?"], ["complexity", "--help"]):
        said = run(tmp_path, sys.executable, "-m", "tencrop", *words, cwd=tmp_path)
        assert said.returncode == 2 and said.stderr.startswith(f"error: {tmp_path}/tencrop/conf: is missing"), said
