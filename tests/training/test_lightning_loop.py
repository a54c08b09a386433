"""What is taken out of Lightning's steps is unused: hooks with a body still run, with the same arguments."""

from pathlib import Path

import pytest
from pytorch_lightning import Callback
from torch import nn

from tencrop.config import derive_batches
from tencrop.data.store.manifest import read_manifest
from tencrop.training import fit
from tencrop.training.fit import build, build_trainer
from tencrop.training.lightning_loop import STEP_HOOKS
from training import runs


class Watching(Callback):
    def on_before_zero_grad(self, trainer, classifier, optimizer) -> None:
        pass


@pytest.fixture
def trainer(prepared_photos, tmp_path: Path, monkeypatch):
    """trainer(lean): for the recipe of `runs`, with and without what skip_unused_work does."""

    def make(lean: bool):
        if not lean:
            monkeypatch.setattr(fit, "skip_unused_work", lambda trainer: None)
        config = runs.recipe(prepared_photos)
        return build_trainer(
            config, num_epochs=1, run_dir=tmp_path, logger=None, callbacks=[Watching()], checkpoint=None
        )

    return make


def test_only_hooks_with_a_body_are_called(trainer):
    lean = trainer(True)
    (callback,) = [one for one in lean.callbacks if isinstance(one, Watching)]
    assert [hook for hook in STEP_HOOKS if callable(getattr(callback, hook))] == ["on_before_zero_grad"]
    with lean.profiler.profile("one"), lean.profiler.profile("within one"):
        pass


class Counting(Callback):
    """Counts the backward passes and the updates, so that Lightning must take its own way through both."""

    def __init__(self) -> None:
        self.num_backward, self.num_updates = 0, 0

    def on_after_backward(self, trainer, classifier) -> None:
        self.num_backward += 1

    def on_before_optimizer_step(self, trainer, classifier, optimizer) -> None:
        self.num_updates += 1


def test_hooks_around_the_update_run_and_change_no_weight(prepared_photos, tmp_path):
    config, counting, found = runs.recipe(prepared_photos, "training.max_steps=2"), Counting(), []
    for number, callbacks in enumerate(([], [counting])):
        built = build(config, batches=derive_batches(config), manifest=read_manifest(prepared_photos))
        run_dir = tmp_path / str(number)
        run_dir.mkdir()
        result = fit.fit(*built, run_dir=run_dir, callbacks=callbacks)
        found.append((result.step, result.weights_sha256))
    assert found[0] == found[1] and found[0][0] == 2
    assert (counting.num_backward, counting.num_updates) == (2 * 3, 2)  # three micro-batches a step


def test_a_step_has_the_arguments_that_lightning_finds(trainer, prepared_photos):
    config = runs.recipe(prepared_photos)
    _, classifier = build(config, batches=derive_batches(config), manifest=read_manifest(prepared_photos))
    found = []
    for lean in (True, False):
        one = trainer(lean)
        one.strategy._lightning_module = classifier
        found.append(one.fit_loop.epoch_loop._build_kwargs({}, "the batch", 3))
    assert found[0] == found[1] == {"batch": "the batch", "batch_idx": 3}


def test_attributes_of_the_classifier_are_stored_as_by_torch(prepared_photos):
    config = runs.recipe(prepared_photos)
    _, classifier = build(config, batches=derive_batches(config), manifest=read_manifest(prepared_photos))
    classifier.latest_lr = 0.5
    assert classifier.latest_lr == 0.5
    classifier.run_id = nn.Linear(1, 1)  # type: ignore[assignment]  # a layer takes the place of a plain value
    assert "run_id" in dict(classifier.named_children()) and "run_id" not in vars(classifier)
    with pytest.raises(TypeError, match="cannot assign"):
        classifier.model = 3  # type: ignore[assignment]
