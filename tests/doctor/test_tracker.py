"""The tracker's line."""

import pytest

from tencrop.config import Tracker, UserError
from tencrop.doctor.tracker import examine_tracker, judge_wandb


@pytest.mark.parametrize("name", ["none", "tensorboard"])
def test_trackers_without_a_server(name):
    assert [found.state for found in examine_tracker(Tracker(name, None))] == ["ok"]


def test_wandb_with_and_without_its_server(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the port that discards
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    (found,) = examine_tracker(Tracker("wandb", None))
    assert found.state == "warning" and "http://127.0.0.1:9 does not answer" in found.text and found.remedy
    assert judge_wandb(None, "https://x", is_chosen=False)[0].state == "ok"
    assert judge_wandb("set in WANDB_MODE", "https://x", is_chosen=True)[0].state == "ok"


def test_mlflow_without_its_server(monkeypatch):
    monkeypatch.setattr("tencrop.config.tracker.find_spec", lambda name: name)
    (found,) = examine_tracker(Tracker("mlflow", None))
    assert found.state == "ok" and "run folder" in found.text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:password@127.0.0.1:9")
    (found,) = examine_tracker(Tracker("mlflow", None))
    assert found.state == "warning" and "does not answer" in found.text and "password" not in found.text


def test_an_invalid_project_is_an_error_of_the_user():
    with pytest.raises(UserError, match="wandb does not allow"):
        examine_tracker(Tracker("wandb", "a#b"))
