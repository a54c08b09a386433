"""Stochastic depth: the linear decay, draws for a whole batch, the scaling in testing, what a dropped block learns."""

import math

import pytest
import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from tencrop.models import resnet, stochastic_depth
from tencrop.models.stochastic_depth import StochasticDepth, with_stochastic_depth
from typed import layer_at, present


def small(last_survival=0.5):
    torch.manual_seed(0)
    return with_stochastic_depth(resnet.resnet(BasicBlock, 18, 5, width=0.125), last_survival)


def test_survival_decays_linearly_over_the_50_blocks():
    with torch.device("meta"):
        network = stochastic_depth.resnet152_stochastic_depth()
    blocks = [module for module in network.modules() if isinstance(module, Bottleneck)]
    survival = [1 - layer_at(block, "drop_path", StochasticDepth).drop_rate for block in blocks]
    stages = [layer_at(network, f"layer{number}", nn.Sequential) for number in (1, 2, 3)]
    assert len(blocks) == 50 and [len(stage) for stage in stages] == [3, 8, 36]
    assert survival == pytest.approx([1 - number / 50 * (1 - 0.5) for number in range(1, 51)])
    assert survival[0] == pytest.approx(0.99) and survival[-1] == 0.5
    assert all(block.conv1.stride == (1, 1) for block in blocks)  # fb.resnet.torch: the stride is in the 3 x 3


@pytest.mark.parametrize("drop_rate", [0.01, 0.3, 0.5])
def test_a_branch_survives_for_a_whole_batch_at_its_rate_and_unscaled(drop_rate):
    torch.manual_seed(0)
    layer, branch, num_batches = StochasticDepth(drop_rate), torch.rand(4, 2, 3, 3) + 1, 4000
    outputs = [layer(branch) for _ in range(num_batches)]
    survived = [torch.equal(output, branch) for output in outputs]
    assert all(kept or not output.any() for kept, output in zip(survived, outputs, strict=True))
    deviation = math.sqrt(drop_rate * (1 - drop_rate) / num_batches)
    assert abs(sum(survived) / num_batches - (1 - drop_rate)) < 4 * deviation


def test_testing_scales_by_the_probability_and_draws_nothing():
    branch = torch.randn(4, 2, 3, 3)
    assert torch.equal(StochasticDepth(0.3).eval()(branch), branch * 0.7)
    network, images = small().eval(), torch.randn(2, 3, 32, 32)
    assert torch.equal(network(images), network(images))


def test_a_dropped_block_learns_nothing_and_lets_the_gradient_pass():
    network = small()
    blocks = [module for module in network.modules() if isinstance(module, BasicBlock)]
    for block in blocks:
        layer_at(
            block, "drop_path", StochasticDepth
        ).drop_rate = 1.0  # all dropped: what is left are the stem and the projections
    last_mean = present(layer_at(blocks[-1], "bn2", nn.BatchNorm2d).running_mean)
    mean_before = last_mean.clone()
    network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    for name, parameter in network.named_parameters():
        is_residual = name.startswith("layer") and "downsample" not in name
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any() != is_residual, name
    assert not torch.equal(last_mean, mean_before)  # its BatchNorm has seen the batch


def test_survival_of_1_is_the_network_without():
    network, images = small(last_survival=1.0), torch.randn(2, 3, 32, 32)
    torch.manual_seed(0)
    constant = resnet.resnet(BasicBlock, 18, 5, width=0.125)
    for is_training in (True, False):
        assert torch.equal(network.train(is_training)(images), constant.train(is_training)(images))


@pytest.mark.parametrize("last_survival", [0.0, 1.5, -1])
def test_invalid_probabilities_are_refused(last_survival):
    with pytest.raises(ValueError, match=f"last_survival={last_survival}"):
        small(last_survival)


def test_timms_drop_path_in_addition_is_refused():
    with torch.device("meta"), pytest.raises(ValueError, match="drop_path_rate"):
        stochastic_depth.resnet152_stochastic_depth(drop_path_rate=0.2)
