"""The limit on the RMS of convolution kernels, against NumPy."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tencrop.config import UserError
from tencrop.training.kernel_rms import kernels_of, limit_rms


def test_large_kernels_are_cut_to_the_limit_and_others_keep_their_bits():
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 5, 3), nn.Linear(4, 2)
    network = nn.Sequential(first, nn.BatchNorm2d(5), nn.Conv2d(5, 4, 1), nn.Flatten(), last)
    with torch.no_grad():
        scales = torch.tensor([1e-3, 0.5, 3.0, 0.0, 40.0])
        first.weight.normal_().mul_(scales[:, None, None, None])
        last.weight.fill_(9.0)
    before = copy.deepcopy(network.state_dict())
    limit_rms(kernels_of(network, 0.1, name="a network"), 0.1)
    cut = 0
    for name, weight in network.state_dict().items():
        old = before[name].numpy()
        if name in ("0.weight", "2.weight"):
            for kernel, new in zip(old, weight.numpy(), strict=True):
                rms = np.sqrt(np.mean(kernel.astype(np.float64) ** 2))
                cut += rms > 0.1
                expected = kernel * (0.1 / rms) if rms > 0.1 else kernel
                np.testing.assert_allclose(new, expected, rtol=1e-6)
                assert rms > 0.1 or np.array_equal(new, kernel)
        else:
            assert np.array_equal(weight.numpy(), old), name
    assert 3 <= cut < 9


def test_a_network_without_convolutions_that_learn_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Linear(4, 2))
    assert len(kernels_of(network, 0.1, name="x")) == 1
    network[0].requires_grad_(False)
    with pytest.raises(UserError, match=r"training\.max_rms=0\.1: x has no convolution that learns; set it to null"):
        kernels_of(network, 0.1, name="x")
