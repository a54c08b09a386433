"""A training starts from another run's weights: which tensors are that run's, which the seed's, which resampled."""

from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer import checkpoint_filter_fn as swin_filter
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter

from tencrop.config import Model, UserError
from tencrop.config.schema import Init
from tencrop.models.factory import build_model
from tencrop.training.initial_weights import InitialWeights, apply_initial_weights

# Simonyan and Zisserman 2015, section 3.1: the first four convolutions and the three fully-connected layers of A
OF_A = [f"features.conv{layer}.*" for layer in ("1_1", "2_1", "3_1", "3_2")] + ["classifier.*"]
SMALL_VIT: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 2}
SMALL_SWIN: dict[str, Any] = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}


def network(name, *, seed, num_classes=10, **kwargs):
    torch.manual_seed(seed)
    return build_model(Model(name, kwargs, channels_last=False, bn_group=None), num_classes=num_classes)


def weights_of(model, **state):
    facts = {"checkpoint": "a.ckpt", "weights": "raw", "weights_sha256": ""}
    return InitialWeights({**model.state_dict(), **state}, facts)


def apply(model, source, init, *, name="the network", num_classes=10, **kwargs):
    built_from = Model(name, kwargs, channels_last=False, bn_group=None)
    apply_initial_weights(model, weights_of(source), init, model=built_from, num_classes=num_classes)
    return model.state_dict()


@pytest.mark.parametrize("column", ["b", "c", "d", "e"])
def test_vgg_starts_from_layers_of_a(column):
    small = {"width": 1 / 16, "img_size": 32}
    a, seeds = network("vgg_a", seed=1, **small), network(f"vgg_{column}", seed=0, **small).state_dict()
    found = apply(network(f"vgg_{column}", seed=0, **small), a, Init("a.ckpt", only=OF_A))
    named = {f"features.conv{layer}.{kind}" for layer in ("1_1", "2_1", "3_1", "3_2") for kind in ("weight", "bias")}
    named |= {f"classifier.fc{layer}.{kind}" for layer in (6, 7, 8) for kind in ("weight", "bias")}
    assert named < found.keys()
    for name, value in found.items():
        expected = a.state_dict()[name] if name in named else seeds[name]
        assert torch.equal(value, expected), name
        assert torch.equal(value, seeds[name]) == (name not in named or name.endswith("bias")), name  # biases are 0


def test_a_vit_for_224_pixels_is_fine_tuned_at_384():
    small, large = (network(f"vit_base_patch16_{size}", seed=size, **SMALL_VIT) for size in (224, 384))
    reference = VisionTransformer(384, num_classes=10, **SMALL_VIT)
    expected = vit_filter(small.state_dict(), reference)
    found = apply(large, small, Init("a.ckpt", resize=True))
    assert found["pos_embed"].shape == (1, 24 * 24 + 1, 24)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    # the class token has no place in the grid
    assert torch.equal(found["pos_embed"][:, 0], small.pos_embed[:, 0])
    assert large(torch.zeros(1, 3, 384, 384)).shape == (1, 10)


@pytest.mark.filterwarnings("ignore::UserWarning:timm.layers.interpolate")  # of the reference
def test_the_tables_of_swins_windows_grow_from_7_to_12():
    names = [f"swin_base_patch4_window{size}" for size in ("7_224", "12_384")]
    small, large = (network(name, seed=seed, **SMALL_SWIN) for seed, name in enumerate(names))
    reference = SwinTransformer(384, window_size=12, num_classes=10, **SMALL_SWIN)
    expected = swin_filter(small.state_dict(), reference)
    found = apply(large, small, Init("a.ckpt", resize=True))
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert (small.state_dict()[table].shape, found[table].shape) == ((13 * 13, 1), (23 * 23, 1))
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_the_last_layer_is_kept_new_or_scaled():
    source, seeds = network("vgg_a", seed=1, width=1 / 16), network("vgg_a", seed=0, width=1 / 16).state_dict()
    heads = {}
    for head in ("keep", "new", "scaled"):
        own = network("vgg_a", seed=0, width=1 / 16)
        found = apply(own, source, Init("a.ckpt", head=head), name="vgg_a", width=1 / 16)
        heads[head] = found["classifier.fc8.weight"]
        assert torch.equal(found["classifier.fc7.weight"], source.state_dict()["classifier.fc7.weight"])
    assert torch.equal(heads["keep"], source.state_dict()["classifier.fc8.weight"])
    assert torch.equal(heads["new"], seeds["classifier.fc8.weight"])
    assert torch.equal(heads["scaled"], seeds["classifier.fc8.weight"] * 0.001)


@pytest.mark.parametrize("head", ["new", "scaled"])
def test_hidden_layers_with_as_many_outputs_as_classes_are_loaded(head):
    """ResNet's first convolution and first stage have 64."""
    source, own = network("resnet18", seed=1, num_classes=64), network("resnet18", seed=0, num_classes=64)
    found = apply(own, source, Init("a.ckpt", head=head), name="resnet18", num_classes=64)
    differ = {key for key, value in source.state_dict().items() if not torch.equal(found[key], value)}
    assert differ == {"fc.weight", "fc.bias"}


def test_a_backbone_is_taken_to_other_classes():
    source = network("vgg_a", seed=1, num_classes=1000, width=1 / 16)
    own = network("vgg_a", seed=0, width=1 / 16)
    found = apply(own, source, Init("a.ckpt", head="new"), name="vgg_a", width=1 / 16)
    assert found["classifier.fc8.weight"].shape[0] == 10
    with pytest.raises(UserError, match=r"classifier\.fc8\.weight is \[1000, 256\] .* need training\.init\.head=new"):
        apply(network("vgg_a", seed=0, width=1 / 16), source, Init("a.ckpt"))


def test_what_does_not_fit_is_refused_and_changes_nothing():
    a, b = network("vgg_a", seed=1, width=1 / 16), network("vgg_b", seed=0, width=1 / 16)
    before = {name: value.clone() for name, value in b.state_dict().items()}
    for init, words in (
        (Init("a.ckpt"), r"a\.ckpt: its weights do not fit the network: missing: features\.conv1_2\.weight"),
        (Init("a.ckpt", only=["features.*"]), r"missing: features\.conv1_2\.weight"),
        (
            Init("a.ckpt", only=["feature.*"]),
            r"feature\.\* matches no tensor of the network; .* features\.conv1_1\.weight",
        ),
        (Init("a.ckpt", only=OF_A, resize=True), "has the shapes of the network already; set it to false"),
    ):
        with pytest.raises(UserError, match=words):
            apply(b, a, init)
    c = network("vgg_a", seed=0, width=1 / 16)
    with pytest.raises(UserError, match=r"unexpected: features\.conv1_2\.weight"):
        apply(c, b, Init("a.ckpt"))
    assert all(torch.equal(value, before[name]) for name, value in b.state_dict().items())
