"""Class scores in float32 under autocast: every kind of classifier, in evaluation only."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tencrop.config import Model
from tencrop.models.convolutional import MeanScores, fully_convolutional
from tencrop.models.factory import build_model, create_network
from tencrop.models.last_layer import last_layers
from tencrop.training.precision import allow_tf32, set_precision

NUM_CLASSES = 1000
# name, arguments, image size
HEADS: dict[str, tuple[str, dict[str, Any], int]] = {
    "linear": ("test_resnet", {}, 64),
    "a multilayer head": ("test_convnext", {}, 64),
    "two heads": ("deit_tiny_distilled_patch16_224", {"img_size": 32, "depth": 1}, 32),
    "two heads after BatchNorm": ("levit_128s", {"img_size": 64}, 64),
    "several heads averaged": ("crossvit_tiny_240", {}, 240),
    "a head for patches": ("volo_d1_224", {"img_size": 64}, 64),
    "timm's convolution": ("dla46_c", {}, 64),
    "a convolution, then pooling": ("squeezenet_1_1", {}, 64),
    "a convolution, ReLU, then pooling": ("nin", {"width": 0.25}, 64),
    "ours": ("vgg_a", {"width": 0.05, "img_size": 32}, 32),
    "torchvision's": ("torchvision/resnet18", {}, 32),
    "torchvision's convolution": ("torchvision/squeezenet1_1", {}, 64),
    "torchvision's transformer": ("torchvision/vit_b_32", {"image_size": 32}, 32),
}


def model(name: str, options: dict) -> Model:
    return Model(name=name, kwargs=options, channels_last=False, bn_group=None)


def with_near_pairs(network: nn.Module) -> nn.Module:
    """Every second class scores 0.1% more than the class before it: less than bfloat16 can tell apart (0.4%)."""
    for layer in last_layers(network, NUM_CLASSES):
        for parameter in layer.parameters():
            values = nn.init.normal_(parameter, std=0.05).detach()
            values[1::2] = values[::2] * 1.001
    return network.eval()


@torch.no_grad()
def under_bf16(network: nn.Module, images: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return network(images)


def num_tied(logits: Tensor) -> int:
    """Images whose best two classes score the same."""
    best = logits.float().topk(2, dim=1).values
    return int((best[:, 0] == best[:, 1]).sum())


@pytest.mark.parametrize("head", HEADS)
def test_bf16_ties_no_more_best_scores_than_float32(head: str) -> None:
    name, options, size = HEADS[head]
    torch.manual_seed(0)
    plain = with_near_pairs(create_network(model(name, options), num_classes=NUM_CLASSES))
    network = build_model(model(name, options), num_classes=NUM_CLASSES).eval()
    network.load_state_dict(plain.state_dict())
    images = torch.randn(8, 3, size, size)
    with torch.no_grad():
        exact = network(images)
    assert num_tied(under_bf16(plain, images)) > num_tied(exact), "or the test shows nothing"
    logits = under_bf16(network, images)
    assert logits.dtype == torch.float32 and num_tied(logits) <= num_tied(exact)


def test_dense_evaluation_ties_no_more_best_scores_than_float32() -> None:
    torch.manual_seed(0)
    images = torch.randn(8, 3, 64, 64)
    built = []
    for build in (create_network, build_model):
        torch.manual_seed(1)
        network = with_near_pairs(build(model("vgg_a", {"width": 0.05, "img_size": 32}), num_classes=NUM_CLASSES))
        built.append(MeanScores(fully_convolutional(network, image_size=32)))
    with torch.no_grad():
        exact = built[1](images)
    assert [num_tied(under_bf16(network, images)) for network in built] == [num_tied(exact)] * 2
    scores = under_bf16(built[1].network, images)
    assert scores.dtype == torch.float32 and scores.shape[2:] == (2, 2)
    assert not torch.equal(scores, scores.bfloat16().float())


def test_training_is_unchanged() -> None:
    named = model("test_vit", {"img_size": 32})
    torch.manual_seed(0)
    plain = create_network(named, num_classes=NUM_CLASSES)
    network = build_model(named, num_classes=NUM_CLASSES)
    network.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    for one in (plain, network):
        one.train()
    assert torch.equal(under_bf16(plain, images), under_bf16(network, images))
    assert under_bf16(network, images).dtype == torch.bfloat16
    for one in (plain, network):
        one.eval()
    with torch.no_grad():
        assert torch.equal(plain(images), network(images)), "without autocast nothing is computed anew"


def test_a_copy_keeps_the_hook_and_uses_its_own_weights() -> None:
    network = build_model(model("test_vit", {"img_size": 32}), num_classes=NUM_CLASSES).eval()
    images = torch.randn(2, 3, 32, 32)
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        for parameter in copied.parameters():
            parameter.requires_grad_(False).mul_(2)
        logits = under_bf16(copied, images)
        assert logits.dtype == torch.float32 and not torch.allclose(logits, under_bf16(network, images))


@pytest.mark.parametrize("is_training", [True, False])
def test_tf32_is_off_in_the_last_layer_only(is_training: bool, monkeypatch) -> None:
    """The TF32 switches during each layer's computation; on a CPU they have no effect."""
    network = build_model(model("test_resnet", {}), num_classes=NUM_CLASSES).train(is_training)
    (last,) = last_layers(network, NUM_CLASSES)
    seen: list[tuple[bool, bool]] = []

    def note(*_: object) -> None:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))

    forward = type(last).forward

    def noting(inputs: Tensor) -> Tensor:
        note()
        return forward(last, inputs)

    monkeypatch.setattr(last, "forward", noting)
    before = allow_tf32()
    try:
        set_precision("tf32")
        network(torch.zeros(2, 3, 64, 64))
        note()
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before.values()
    assert seen == ([(True, True)] * 2 if is_training else [(True, True), (False, False), (True, True)])


def test_meta_tensors_pass() -> None:
    with torch.device("meta"):
        network = build_model(model("test_resnet", {}), num_classes=NUM_CLASSES).eval()
    assert network(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, NUM_CLASSES)
