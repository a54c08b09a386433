"""The moving average against hand-computed values."""

import copy

import torch
from torch import nn

from tencrop.training.ema import update_ema
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
    update_ema(ema, model, decay=0.9)
    torch.testing.assert_close(ema[0].weight, before["0.weight"] + 0.1)
    torch.testing.assert_close(ema[1].running_mean, before["1.running_mean"] + 0.2)
    assert ema[1].num_batches_tracked == 3
