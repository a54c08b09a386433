"""The moving average against hand-computed values."""

import copy

import torch
from torch import nn

from tencrop.training.ema import update_ema


def test_ema_against_hand_computed_values():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = copy.deepcopy(model)
    with torch.no_grad():
        model[0].weight.add_(1.0)
        model[1].running_mean.add_(2.0)
        model[1].num_batches_tracked.add_(3)
    before = copy.deepcopy(ema.state_dict())
    update_ema(ema, model, decay=0.9)
    torch.testing.assert_close(ema[0].weight, before["0.weight"] + 0.1)
    torch.testing.assert_close(ema[1].running_mean, before["1.running_mean"] + 0.2)
    assert ema[1].num_batches_tracked == 3
