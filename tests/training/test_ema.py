"""The moving average against hand-computed values, and over the steps of a run."""

import copy

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback
from torch import nn

from tencrop.config import derive_batches
from tencrop.data.store.manifest import read_manifest
from tencrop.training.checkpoints import read_checkpoint
from tencrop.training.ema import MovingAverage, ema_decay
from tencrop.training.fit import build, fit
from training import runs
from typed import present


def test_ema_against_hand_computed_values():
    linear, norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
    model = nn.Sequential(linear, norm)
    ema = copy.deepcopy(model)
    with torch.no_grad():
        linear.weight.add_(1.0)
        present(norm.running_mean).add_(2.0)
        present(norm.num_batches_tracked).add_(3)
    before = copy.deepcopy(ema.state_dict())
    MovingAverage(ema, model).update(decay=0.9)
    torch.testing.assert_close(ema[0].weight, before["0.weight"] + 0.1)
    torch.testing.assert_close(ema[1].running_mean, before["1.running_mean"] + 0.2)
    assert ema[1].num_batches_tracked == 3


def test_a_network_that_has_moved_is_still_averaged():
    """Moving a module replaces its buffers; here to another dtype, as there is one device only."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = copy.deepcopy(model)
    average = MovingAverage(ema, model)
    for network in (model, ema):
        network.double()
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(3)
    before = copy.deepcopy(ema.state_dict())
    average.update(decay=0.5)
    for name, value in ema.state_dict().items():
        assert torch.equal(value, (before[name] + 3) / 2 if value.is_floating_point() else torch.tensor(3)), name


def test_the_warm_up_is_tensorflows():
    """tf.train.ExponentialMovingAverage(0.9999, num_updates=n): 2/11, 3/12, 4/13, ... up to 0.9999 at n = 89,990."""
    first = [ema_decay(0.9999, num_updates=n, warmup="tf") for n in (1, 2, 3)]
    assert first == pytest.approx([2 / 11, 3 / 12, 4 / 13], rel=1e-15)
    assert ema_decay(0.9999, num_updates=89_989, warmup="tf") < 0.9999
    assert ema_decay(0.9999, num_updates=89_991, warmup="tf") == 0.9999
    assert ema_decay(0.9999, num_updates=1, warmup="none") == 0.9999


class Weights(Callback):
    """Keeps one weight tensor from before the first step and after every optimizer step, as NumPy float64."""

    def __init__(self, name: str):
        self.name = name
        self.values: list[np.ndarray] = []

    def on_train_start(self, trainer, classifier):
        self._keep(classifier)

    def on_train_batch_end(self, trainer, classifier, *_):
        if classifier.is_at_step_boundary:
            self._keep(classifier)

    def _keep(self, classifier):
        self.values.append(classifier.model.state_dict()[self.name].numpy().astype(np.float64))


def test_a_run_averages_its_weights_with_the_warm_up(prepared_photos, tmp_path):
    """NumPy's average over the weights that a run had after each of its steps."""
    config = runs.recipe(prepared_photos, "training.ema_decay=0.999", "training.ema_warmup=tf", "training.max_steps=4")
    weights = Weights("conv_stem.weight")
    built = build(config, batches=derive_batches(config), manifest=read_manifest(prepared_photos))
    result = fit(*built, run_dir=tmp_path, callbacks=[weights])
    torch.use_deterministic_algorithms(False)  # fit() has switched them on, and it ran in this process
    average, *after = weights.values
    assert len(after) == 4
    for n, value in enumerate(after, start=1):
        decay = min(0.999, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * value
    found = read_checkpoint(result.checkpoint)["state_dict"]["ema.conv_stem.weight"]
    np.testing.assert_allclose(found.numpy(), average, rtol=1e-5, atol=1e-7)
