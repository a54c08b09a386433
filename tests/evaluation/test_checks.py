"""A network or an image that does not fit the protocol is refused before any image is scored."""

import contextlib
import copy

import pytest
import torch
from torch import nn

from tencrop.config import UserError, derive_batches
from tencrop.data.store.manifest import read_manifest
from tencrop.evaluation import checks
from tencrop.evaluation.checks import check_scorable
from tencrop.training.fit import build

DENSE = ("model=vgg_a", "+model.kwargs.width=0.1", "+model.kwargs.img_size=32", "protocol=dense")


def test_images_smaller_than_the_crop_are_refused_by_name(make_config, make_task) -> None:
    task, network = make_task(make_config("protocol.side=null", "protocol.size=40"))
    with pytest.raises(UserError, match=r"protocol\.side=null: class0/000\.png has a shorter side of 36 pixels"):
        check_scorable(network, task.config)


def test_the_memory_of_dense_evaluation_is_reported_first(make_config, make_task, monkeypatch, capsys) -> None:
    config = make_config(*DENSE, "protocol.side=[64,72]", "hardware.max_micro_batch=10")
    _, network = make_task(config)
    check_scorable(network, config)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(checks, "largest_layer_bytes", lambda network, height, width: 1e5 * height * width)
    check_scorable(network, config)
    assert capsys.readouterr().err == (  # of the images of 36 x 44, ten times 88 x 72 x 1e5 bytes
        "protocol=dense: images of up to 88 x 72 pixels take up to 6.3 GB in one layer of vgg_a, 10 at once"
        " (hardware.max_micro_batch)\n"
    )


@pytest.mark.parametrize("options", [("protocol=center",), DENSE, ("protocol=center", "protocol.size=5")])
def test_check_scorable_leaves_the_network_as_it_was(options, make_config, new_network) -> None:
    config = make_config(*options)
    network = nn.Sequential(new_network(config), nn.BatchNorm1d(6), nn.Dropout(0.5)).train()
    network[2].eval()  # as for a frozen layer
    before = copy.deepcopy(network)
    random_state = torch.get_rng_state()
    with contextlib.suppress(UserError):  # Sequential has no convolutional form, and 5 pixels are too few
        check_scorable(network, config)
    with contextlib.suppress(UserError):
        check_scorable(network[0], config)
    after = dict(network.named_modules())
    assert {name: layer.training for name, layer in before.named_modules()} == {n: m.training for n, m in after.items()}
    for name, layer in before.named_modules():
        assert len(layer._forward_hooks) == len(after[name]._forward_hooks), name
    for name, value in before.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_too_large_an_image_is_refused_first_and_a_large_one_reported(
    make_config, new_network, monkeypatch, capsys
) -> None:
    config = make_config("protocol=ten_crop", "protocol.side=[36,72]")
    network = new_network(config)
    check_scorable(network, config)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("tencrop.data.sampling.sampler.MAX_PADDED_BYTES", 3 * 72 * 80)
    check_scorable(network, config)
    assert capsys.readouterr().err.startswith("protocol.side=72: class"), "and nothing of a side of 36"
    monkeypatch.setattr("tencrop.data.sampling.sampler.MAX_PIXELS", 72 * 80)
    with pytest.raises(UserError, match=r"protocol\.side=72: class.* more than the 5,760 that an image may have"):
        check_scorable(network, config)
    manifest = read_manifest(config.data.root)
    monkeypatch.setattr("tencrop.data.sampling.sampler.MAX_PIXELS", 36 * 40)
    with pytest.raises(UserError, match=r"short_side=36: class.* more than the 1,440 that an image may have"):
        build(config := make_config("training.global_batch=6"), batches=derive_batches(config), manifest=manifest)
