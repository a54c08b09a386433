"""Frozen weights keep every bit, and what trains with them resumes bit for bit."""

import shutil
import signal

import pytest
import torch
from torch import nn

from tencrop.config import UserError
from tencrop.models.checkpoint_files import with_prefix
from tencrop.training.checkpoints import read_checkpoint
from tencrop.training.freezing import freeze
from typed import present

# every key that changes what the tiny network of runs.py learns from where
KEYS = (
    "training.freeze=[conv_stem.*,bn1.*,blocks.0.*]", "training.loss=bce", "training.bce_threshold=0.2",
    "training.ema_warmup=tf", "training.precise_bn=12", "model.bn_momentum=0.2", "model.bn_eps=0.001",
)  # fmt: skip


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))


def test_patterns_select_weights_and_their_batch_norm():
    network = layers()
    assert freeze(network, ["0.*", "1.*"], name="x") == [network[1]]
    assert [layer.training for layer in network] == [True, False, True, True]
    assert [name for name, weight in network.named_parameters() if weight.requires_grad] == [
        "2.weight", "2.bias", "3.weight", "3.bias",
    ]  # fmt: skip
    assert freeze(layers(), [], name="x") == []


def test_a_pattern_without_a_match_and_one_that_freezes_all_are_refused():
    with pytest.raises(UserError, match=r"training\.freeze: conv1\.\* matches no tensor of x; .* 0\.weight, 0\.bias"):
        freeze(layers(), ["0.*", "conv1.*"], name="x")
    with pytest.raises(UserError, match=r"freezes every weight of x; leave its last layer out"):
        freeze(layers(), ["*"], name="x")


def test_frozen_weights_are_the_sources_and_a_resumed_run_needs_no_source(train, uninterrupted, tmp_path):
    """Of a run with all keys on; the source is gone when it resumes."""
    source = tmp_path / "source.ckpt"
    shutil.copy(uninterrupted.last, source)
    options = (*KEYS, f"training.init.checkpoint={source}", "training.init.head=scaled")
    whole = train("whole", *options)
    stopped = train("run", *options, fault={"signal_number": signal.SIGTERM, "at_step": 4})
    assert (whole.exit_code, stopped.exit_code) == (0, 75)
    source.unlink()
    run = train("run", *options)
    assert run.exit_code == 0 and run.rows() == whole.rows()
    assert all(run.result()[key] == whole.result()[key] for key in ("weights_sha256", "ema_sha256"))

    start = present(with_prefix(read_checkpoint(uninterrupted.last)["state_dict"], "ema."))
    state = read_checkpoint(run.last)["state_dict"]
    frozen = [name for name in start if name.startswith(("conv_stem.", "bn1.", "blocks.0."))]
    assert any("running_var" in name for name in frozen)
    for name in start:
        is_same = torch.equal(state[f"model.{name}"], start[name])
        assert is_same == (name in frozen) or name.endswith("num_batches_tracked"), name
    assert all(torch.equal(state[f"ema.{name}"], start[name]) for name in frozen if "num_batches" not in name)
