"""FractalNet's rule against a recursion, its map sizes, and drop-path: what is drawn, how often, and what learns."""

import math

import pytest
import torch
from torch import nn

from tencrop.config import Batches
from tencrop.models import fractalnet
from tencrop.models.fractalnet import FractalBlock, FractalNet, join
from tencrop.training.batchnorm import GroupStatistics, set_groups
from typed import present


def block(num_columns=3, drop_local=0.15):
    torch.manual_seed(0)
    return FractalBlock(4, 6, num_columns, drop_local).double()


def maps():
    return torch.randn(3, 4, 8, 8, dtype=torch.float64)


def test_map_sizes_depth_and_parameters():
    shapes = []
    with torch.device("meta"):
        network = fractalnet.fractalnet34()
        for layer in (network.stem, network.pool, *network.blocks):
            layer.register_forward_hook(lambda _layer, _inputs, output: shapes.append(tuple(output.shape[1:])))
        assert network(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    assert shapes == [(64, 112, 112), (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7), (1024, 3, 3)]
    columns = [[list(column.children()) for column in b.get_submodule("columns").children()] for b in network.blocks]
    assert all([len(column) for column in block] == [1, 2, 4, 8] for block in columns)
    assert 1 + sum(len(block[-1]) for block in columns) + 1 == 34
    assert sum(parameter.numel() for parameter in network.parameters()) == 164_031_016


@pytest.mark.parametrize("num_columns", [1, 2, 3, 4])
def test_a_block_is_the_recursion_of_the_paper(num_columns):
    """f_1 = convolution; f_(C+1) = (f_C after f_C) joined with a convolution, all that end together by one mean."""
    network, images = block(num_columns).eval(), maps()
    remaining = [iter(column) for column in network.columns]

    def ends(num_columns, inputs):
        """The outputs of f's columns that its last join would take."""
        if num_columns == 0:
            return []
        first = ends(num_columns - 1, inputs)
        second = ends(num_columns - 1, torch.stack(first).mean(0)) if first else []
        own = next(remaining[len(network.columns) - num_columns])(inputs)
        return [own, *second]

    pooled = torch.stack([nn.functional.max_pool2d(end, 2) for end in ends(num_columns, images)])
    torch.testing.assert_close(network(images), pooled.mean(0))
    assert all(next(column, None) is None for column in remaining)  # every convolution was used once


@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_global_batch_runs_through_one_column(column):
    network, images = block(), maps()
    output = network(images, torch.tensor(column))
    expected = nn.functional.max_pool2d(network.columns[column](images), 2)
    torch.testing.assert_close(output, expected)
    output.square().sum().backward()
    for number, convolutions in enumerate(network.columns):
        for name, parameter in convolutions.named_parameters():
            assert parameter.grad is not None and parameter.grad.any() == (number == column), (number, name)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # the others' statistics are those of real maps
            assert present(module.running_mean).any() and torch.isfinite(present(module.running_var)).all()


def test_columns_and_kinds_of_batches_are_drawn_evenly():
    torch.manual_seed(0)
    network, num_batches = FractalNet(2, num_maps=(8,), width=0.25), 4000
    draws = torch.stack([network.draw_column(torch.device("cpu")) for _ in range(num_batches)])
    assert set(draws.tolist()) == {-1, 0, 1, 2, 3}
    for value, probability in ((-1, 0.5), *((column, 0.125) for column in range(4))):
        deviation = math.sqrt(probability * (1 - probability) / num_batches)
        assert abs((draws == value).float().mean() - probability) < 4 * deviation


@pytest.mark.parametrize("drop_local", [0.15, 0.5])
def test_a_local_join_drops_each_input_and_keeps_one(drop_local):
    torch.manual_seed(0)
    network, num_joins = block(drop_local=drop_local), 4000
    kept = torch.stack([network.draw_kept([0, 1, 2], torch.tensor(-1), torch.device("cpu")) for _ in range(num_joins)])
    assert kept.any(1).all()
    for number in range(3):  # the one that survives where all were dropped is any of the three
        probability = 1 - drop_local + drop_local**3 / 3
        deviation = math.sqrt(probability * (1 - probability) / num_joins)
        assert abs(kept[:, number].float().mean() - probability) < 4 * deviation


def test_where_all_inputs_are_dropped_one_still_learns():
    network, images, learning = block(num_columns=2, drop_local=1.0), maps(), set()
    for _ in range(20):
        network.zero_grad()
        network(images, torch.tensor(-1)).square().sum().backward()
        has_learned = [bool(convolutions[-1].conv.weight.grad.any()) for convolutions in network.columns]
        assert sum(has_learned) == 1
        learning.add(has_learned.index(True))
    assert learning == {0, 1}


def test_a_join_is_the_mean_of_what_is_kept():
    first, second, third = maps(), maps(), maps()
    inputs = [first, second, third]
    torch.testing.assert_close(join(inputs), (first + second + third) / 3)
    torch.testing.assert_close(join(inputs, torch.tensor([True, False, True])), (first + third) / 2)
    assert torch.equal(join(inputs, torch.tensor([False, True, False])), second)
    assert join([first.bfloat16(), second.bfloat16()], torch.tensor([True, True])).dtype == torch.bfloat16


def test_testing_keeps_everything_and_draws_nothing():
    torch.manual_seed(0)
    network, images = FractalNet(5, width=0.0625), torch.randn(2, 3, 64, 64)
    assert not torch.equal(network(images), network(images))
    network.eval()
    state = torch.get_rng_state()
    assert torch.equal(network(images), network(images)) and torch.equal(torch.get_rng_state(), state)
    whole = FractalNet(5, width=0.0625, drop_local=0.0, drop_global=0.0)
    whole.load_state_dict(network.state_dict())
    assert torch.equal(whole.eval()(images), network(images))
    assert torch.equal(whole.train()(images), whole(images))  # nothing is drawn at rates of 0


def test_whatever_is_dropped_every_batch_norm_sees_every_group():
    """Grouped BatchNorm relies on this, and so do ranks that draw different columns."""
    torch.manual_seed(0)
    network = set_groups(FractalNet(5, width=0.0625), Batches(1, 16, 8, 2, "ghost", 2))
    statistics = GroupStatistics(network, num_micro_batches=2)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [present(norm.running_mean).clone() for norm in norms]
    for _ in range(3):
        for _ in range(2):
            network(torch.randn(8, 3, 64, 64))
            statistics.collect()  # asserts that all groups are there
        statistics.update()
    after = [present(norm.running_mean) for norm in norms]
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("options", [{"drop_local": 1.5}, {"drop_global": -0.1}], ids=str)
def test_invalid_probabilities_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        FractalNet(**options)
