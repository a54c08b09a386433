"""timm's drop-path as the files of conf/model set it: the rate of every block, and what is dropped of a sample.

That of stochastic depth and of FractalNet, which are ours, is in the tests of their modules.
"""

import math

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from timm.layers import DropPath

from tencrop.cli.choices import CONF


def rate_in(path) -> float:
    file = OmegaConf.load(path)
    assert isinstance(file, DictConfig)
    return file.get("model", file).kwargs.get("drop_path_rate", 0.0)


RATES = {path.stem: rate for path in sorted((CONF / "model").glob("*.yaml")) if (rate := rate_in(path))}
SMALL = {
    "convnext_tiny": {"dims": (8, 8, 16, 16)},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "embed_dim": 16, "num_heads": (1, 1, 2, 2)},
    "deit_tiny_patch16_224": {"img_size": 32, "embed_dim": 16, "num_heads": 1},
    "deit_tiny_distilled_patch16_224": {"img_size": 32, "embed_dim": 16, "num_heads": 1},
    "tf_efficientnet_b0": {},
}


def rates_of_blocks(network) -> list[set[float]]:
    """Of every block in order, the rates of its branches; timm has nothing in the place of a rate of 0."""
    blocks = []
    for block in network.modules():
        branches = [module for name, module in block.named_children() if name.startswith("drop_path")]
        if branches:
            blocks.append({branch.drop_prob if isinstance(branch, DropPath) else 0.0 for branch in branches})
    return blocks


def test_every_family_with_drop_path_is_measured_below():
    assert {name.split("_")[0] for name in RATES} - {"tf"} <= {name.split("_")[0] for name in SMALL}


@pytest.mark.parametrize("name", RATES)
def test_the_rate_of_the_file_reaches_the_blocks_by_a_linear_rule(name, build):
    """From 0 at the first block to the file's rate at the last, or, in EfficientNet, one step before it, as in the
    authors' codes: block l of L (from 0) has l / (L - 1), or l / L, of the rate."""
    with torch.device("meta"):
        blocks = rates_of_blocks(build(name))
    num_steps = len(blocks) if "efficientnet" in name else len(blocks) - 1
    assert len(blocks) > 10
    for number, rates in enumerate(blocks):
        assert list(rates) == [pytest.approx(RATES[name] * number / num_steps, rel=1e-6)], number


@pytest.mark.parametrize(("name", "kwargs"), SMALL.items(), ids=SMALL)
def test_a_samples_branch_is_dropped_whole_at_its_rate_or_scaled(name, kwargs, build):
    """In training, where the number dropped is within 4 deviations of a binomial distribution's mean, which another
    seed would break for one branch in about 10,000; in testing every branch is left alone."""
    torch.manual_seed(0)
    network, num_samples, branches = build(name, **kwargs), 256, []
    for module in network.modules():
        if isinstance(module, DropPath):
            module.register_forward_hook(lambda layer, inputs, out: branches.append((layer.drop_prob, inputs[0], out)))
    images = torch.randn(num_samples, 3, kwargs.get("img_size", 32), kwargs.get("img_size", 32))
    with torch.no_grad():
        network.train()(images)
        assert len(branches) > 8
        for rate, branch, output in branches:
            is_dropped = ~output.flatten(1).any(1)
            torch.testing.assert_close(output[~is_dropped], branch[~is_dropped] / (1 - rate))
            deviation = math.sqrt(num_samples * rate * (1 - rate))
            assert abs(is_dropped.sum().item() - num_samples * rate) < 4 * deviation, rate
        branches.clear()
        network.eval()(images)
    assert branches and all(torch.equal(branch, output) for _, branch, output in branches)
