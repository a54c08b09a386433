"""A converted network is the network at its own size, and slides the same head over larger images."""

import pytest
import torch
from timm import create_model
from torch import nn

import tencrop.models.factory  # noqa: F401  registers our names
from tencrop.config import Model, UserError
from tencrop.models.convolutional import MeanScores, fully_convolutional, largest_layer_bytes
from tencrop.models.factory import build_model
from typed import present

# name, arguments, own size, a larger one, the map it gives there
NETWORKS = [
    ("alexnet_2012", {"width": 0.05, "img_size": 67}, 67, 131, (3, 3)),
    ("alexnet_2012_one_tower", {"width": 0.1, "img_size": 99}, 99, 131, (2, 2)),
    ("zfnet", {"width": 0.05, "img_size": 64}, 64, 128, (3, 3)),
    ("vgg_a", {"width": 0.05, "img_size": 64}, 64, 128, (3, 3)),
    ("vgg_d", {"width": 0.05, "img_size": 32}, 32, 64, (2, 2)),
    ("googlenet_2014", {"width": 0.1, "img_size": 96}, 96, 160, (3, 3)),
    ("resnet18", {}, 64, 96, (2, 2)),
    ("resnet50_v1", {}, 64, 128, (3, 3)),
    ("torchvision/resnet18", {}, 64, 96, (2, 2)),
]


def build(name: str, options: dict) -> nn.Module:
    """In float64, in eval mode, with statistics of BatchNorm that are not 0 and 1."""
    torch.manual_seed(0)
    bn_group = 4 if "resnet" in name else None
    model = Model(name=name, kwargs=options, channels_last=False, bn_group=bn_group)
    network = build_model(model, num_classes=7).double().eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(present(layer.running_mean), std=0.1)
            nn.init.uniform_(present(layer.running_var), 0.5, 2)
            nn.init.normal_(layer.weight, 1, 0.1)
    return network


@pytest.mark.parametrize(("name", "options", "size", "larger", "grid"), NETWORKS, ids=[row[0] for row in NETWORKS])
def test_same_logits_at_the_native_size_and_a_map_for_larger_images(name, options, size, larger, grid) -> None:
    network = build(name, options)
    converted = fully_convolutional(network, image_size=size, name=name)
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        logits = network(images)
        assert logits.std() > 0
        torch.testing.assert_close(
            converted(images), logits[..., None, None], rtol=1e-10, atol=1e-10 * logits.abs().max()
        )
        torch.testing.assert_close(MeanScores(converted)(images), logits, rtol=1e-10, atol=1e-10 * logits.abs().max())
        assert converted(torch.randn(2, 3, larger, larger, dtype=torch.float64)).shape == (2, 7, *grid)


@pytest.mark.parametrize("name", ["vgg_d", "resnet18", "googlenet_2014"])
def test_every_score_is_the_head_on_its_window(name) -> None:
    """The features of the larger image, cut to windows of the native size, through the head as it was."""
    _, options, size, larger, (rows, columns) = next(row for row in NETWORKS if row[0] == name)
    network = build(name, options)
    image = torch.randn(1, 3, larger, larger + 32, dtype=torch.float64)
    with torch.no_grad():
        is_timms = hasattr(network, "forward_features")
        features = getattr(network, "forward_features" if is_timms else "features")
        head = getattr(network, "forward_head" if is_timms else "classifier")
        maps, window = features(image), features(image[..., :size, :size]).shape[-1]
        scores = fully_convolutional(network, image_size=size)(image)
        assert scores.shape[2:] == (rows, columns + 1)
        for row in range(rows):
            for column in range(columns + 1):
                part = maps[:, :, row : row + window, column : column + window]
                if is_timms:
                    expected = head(part)
                elif name == "vgg_d":
                    expected = head(part.flatten(1))
                else:
                    expected = head(part.mean((2, 3), keepdim=True))
                torch.testing.assert_close(scores[:, :, row, column], expected, rtol=1e-9, atol=1e-12)


def test_a_network_without_padding_gives_the_scores_of_every_crop() -> None:
    """Where nothing is padded, a score of the map is exactly what the classifier says of the crop below it."""

    class Unpadded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2))
            self.classifier = nn.Sequential(nn.Linear(4 * 3 * 3, 8), nn.Tanh(), nn.Linear(8, 5))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.features(images).flatten(1))

    network, stride = Unpadded().double(), 4
    images = torch.randn(2, 3, 21, 25, dtype=torch.float64)
    with torch.no_grad():
        scores = fully_convolutional(network, image_size=13)(images)
        assert scores.shape == (2, 5, 3, 4)
        for row in range(3):
            for column in range(4):
                crop = images[:, :, stride * row : stride * row + 13, stride * column : stride * column + 13]
                torch.testing.assert_close(scores[:, :, row, column], network(crop), rtol=1e-10, atol=1e-12)


def test_weights_are_shared_and_the_network_is_left_alone() -> None:
    network = build("vgg_a", {"width": 0.05, "img_size": 32})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    converted = fully_convolutional(network, image_size=32)
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    pointers = {parameter.data_ptr() for parameter in network.parameters()}
    assert {parameter.data_ptr() for parameter in converted.parameters()} == pointers


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "nin", "lenet5_dense"])
def test_other_networks_are_refused(name) -> None:
    with pytest.raises(UserError, match=f"{name} cannot be made fully convolutional: .* choose another protocol"):
        fully_convolutional(create_model(name, num_classes=10), image_size=224 if "vit" in name else 32, name=name)


def test_a_head_with_functional_operations_is_refused() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.classifier = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 2 * self.classifier(self.features(images).flatten(1))

    with pytest.raises(UserError, match="does more than call its layers"):
        fully_convolutional(Doubled(), image_size=8)


def test_the_largest_layer_is_found_from_shapes() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.Conv2d(8, 20, 1))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for height, width in ((6, 10), (50_000, 100_000)):
        assert largest_layer_bytes(network.eval(), height, width) == 4 * (8 + 8) * height * width, "of BatchNorm"
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(layer._forward_hooks for layer in network)
