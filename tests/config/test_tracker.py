"""What wandb would refuse is refused in a sentence before the work; `entity/project` is taken apart."""

import pytest

from tencrop.config import Tracker, UserError
from tencrop.config.tracker import check_tracker, entity_and_project, without_removed_tracker


def test_entity_and_project():
    assert entity_and_project("team/imagenet") == ("team", "imagenet")
    assert entity_and_project("imagenet") == (None, "imagenet")
    assert entity_and_project("") == (None, "") and entity_and_project(None) == (None, None)


@pytest.mark.parametrize(
    ("project", "words"),
    [
        ("a/b/c", "tracker.project=a/b/c: must be PROJECT or ENTITY/PROJECT"),
        ("/b", "must be PROJECT or"),
        ("a/", "must be PROJECT or"),
        ("team/100%", "wandb does not allow %"),
        ("a" * 129, "has 129 characters"),
    ],
)
def test_invalid_wandb_projects_are_refused(project, words, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(UserError, match=words):
        check_tracker(Tracker("wandb", project))
    check_tracker(Tracker("tensorboard", project))


@pytest.mark.parametrize(
    ("mode", "words"), [("Offline", "write offline, or"), ("of", "must be one of online, offline,")]
)
def test_an_invalid_wandb_mode_is_refused(mode, words, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", mode)
    with pytest.raises(UserError, match=f"WANDB_MODE={mode}: {words}"):
        check_tracker(Tracker("wandb", "tencrop"))
    check_tracker(Tracker("none", "tencrop"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_tracker(Tracker("wandb", "team/tencrop"))


def test_the_removed_tracker_of_an_older_run_is_read_as_none():
    assert without_removed_tracker({"name": "csv", "project": "a"}) == {"name": "none", "project": "a"}
    others: list[object] = [{"name": "wandb", "project": "a"}, None, []]
    for tracker in others:
        assert without_removed_tracker(tracker) == tracker


def test_mlflow_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("tencrop.config.tracker.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"MLflow is not installed; install it with pip install 'tencrop\[mlflow\]'"):
        check_tracker(Tracker("mlflow", "tencrop"))
    check_tracker(Tracker("tensorboard", "tencrop"))
