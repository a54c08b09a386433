"""A job whose packages have changed since its submission: other weights are refused, other changes are said."""

import json
import subprocess
import sys

import pytest

from tencrop.commands.check_packages import check_packages
from tencrop.config import UserError
from tencrop.records.provenance import EXACT, installed_packages

SUBMITTED = {"python": "3.11.7", "torch": "2.9.0", "rich": "14.0"}


@pytest.mark.parametrize(
    "installed",
    [SUBMITTED, SUBMITTED | {"black": "25.1"}],
    ids=["the same", "one more"],
)
def test_the_packages_of_the_submission_run(installed):
    assert check_packages(SUBMITTED, installed) is None


def test_a_package_that_does_not_change_the_weights_is_a_warning():
    warning = check_packages(SUBMITTED, {"python": "3.11.7", "torch": "2.9.0"})
    assert warning == "warning: packages have changed since the submission: rich was 14.0, is not installed"


@pytest.mark.parametrize("name", EXACT)
def test_a_package_that_may_change_the_weights_is_refused(name):
    submitted = dict.fromkeys(EXACT, "1")
    with pytest.raises(UserError, match=f"{name} was 1, is 2.*; install those again, or submit again"):
        check_packages(submitted, submitted | {name: "2"})


@pytest.mark.parametrize(("content", "code"), [("same", 0), ("other torch", 2), ("damaged", 2)])
def test_the_program_that_a_job_runs(content, code, tmp_path):
    installed = installed_packages()
    texts = {"same": json.dumps(installed), "other torch": json.dumps(installed | {"torch": "1"}), "damaged": "{"}
    (tmp_path / "packages.json").write_text(texts[content])
    command = [sys.executable, "-m", "tencrop.commands.check_packages", str(tmp_path / "packages.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code and done.stderr.count("\n") == (code == 2), done.stderr
    assert "Traceback" not in done.stderr
