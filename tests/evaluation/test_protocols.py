"""Views against torchvision's crops, one image at a time, and both ways to merge scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import functional as tv

from tencrop.config import Protocol
from tencrop.config.schema import ProtocolName, Region
from tencrop.evaluation import protocols as module
from tencrop.evaluation.protocols import SIDES_144, default_side, merge, num_views, view_groups, views

NAMES: tuple[ProtocolName, ...] = ("center", "flip_pair", "five_crop", "ten_crop")


def protocol(name: ProtocolName, *, size: int = 5, region: Region = "whole") -> Protocol:
    return Protocol(name=name, side=None, size=size, region=region, filter="bicubic", average="softmax")


def batch(sizes: list[tuple[int, int]]) -> tuple[Tensor, np.ndarray]:
    """Images of these sizes with random pixels, padded with other random pixels to the largest."""
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    generator = torch.Generator().manual_seed(height * 1000 + width)
    images = torch.randint(0, 256, (len(sizes), height, width, 3), dtype=torch.uint8, generator=generator)
    return images, np.array(sizes, np.int32)


def views_by_torchvision(image: Tensor, protocol: Protocol) -> list[Tensor]:
    """Slow reference: the views of one image [H, W, 3]."""
    image = image.permute(2, 0, 1)
    if protocol.region == "square":
        image = tv.center_crop(image, [min(image.shape[1:])] * 2)
    size = [protocol.size, protocol.size]
    crops = {
        "center": lambda: [tv.center_crop(image, size)],
        "flip_pair": lambda: [tv.center_crop(image, size), tv.hflip(tv.center_crop(image, size))],
        "five_crop": lambda: list(tv.five_crop(image, size)),
        # torchvision's ten_crop crops the mirror image; its five crops are these, left and right exchanged
        "ten_crop": lambda: [*tv.five_crop(image, size), *(tv.hflip(crop) for crop in tv.five_crop(image, size))],
    }
    return [crop.permute(1, 2, 0) for crop in crops[protocol.name]()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("region", ["whole", "square"])
@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(5, 14), st.integers(5, 14)), min_size=1, max_size=4))
def test_views_equal_torchvision_crops(name: ProtocolName, region: Region, sizes: list[tuple[int, int]]) -> None:
    images, extents = batch(sizes)
    rule = protocol(name, region=region)
    found = views(images, extents, rule)
    assert found.shape == (num_views(rule), len(sizes), 5, 5, 3) and found.dtype == torch.uint8
    for slot, (height, width) in enumerate(sizes):
        expected = torch.stack(views_by_torchvision(images[slot, :height, :width], rule))
        assert torch.equal(found[:, slot], expected)


@pytest.mark.parametrize("height, width", [(8, 8), (8, 11), (9, 6)])
def test_ten_views_equal_torchvision_ten_crop_as_a_set(height: int, width: int) -> None:
    """Only for even margins: otherwise torchvision's reflected center crop is one pixel off from the reflection."""
    size = 6 if height % 2 == width % 2 == 0 else 5
    images, extents = batch([(height, width)])
    expected = tv.ten_crop(images[0].permute(2, 0, 1), [size, size])
    if (width - size) % 2:
        expected = tuple(crop for number, crop in enumerate(expected) if number not in (4, 9))
    found = {tuple(view[0].flatten().tolist()) for view in views(images, extents, protocol("ten_crop", size=size))}
    assert {tuple(crop.permute(1, 2, 0).flatten().tolist()) for crop in expected} <= found


def test_order_of_the_ten_views() -> None:
    """Pixel (row, column) of an 8 x 10 image holds its own coordinates, so that a view shows its position."""
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(10), indexing="ij")
    image = torch.stack([rows, columns, rows], dim=2).to(torch.uint8)[None]
    found = views(image, np.array([[8, 10]]), protocol("ten_crop", size=4))
    first_pixels = [tuple(view[0, 0, 0, :2].tolist()) for view in found]
    assert first_pixels == [(0, 0), (0, 6), (4, 0), (4, 6), (2, 3), (0, 3), (0, 9), (4, 3), (4, 9), (2, 6)]
    square = views(image, np.array([[8, 10]]), protocol("five_crop", size=4, region="square"))
    assert [tuple(view[0, 0, 0, :2].tolist()) for view in square] == [(0, 1), (0, 5), (4, 1), (4, 5), (2, 3)]


def test_the_grid_of_a_256_x_341_image() -> None:
    """Each view shows its own corner: pixel (row, column) holds row, column % 256 and column // 256."""
    rows, columns = torch.meshgrid(torch.arange(256), torch.arange(341), indexing="ij")
    image = torch.stack([rows, columns % 256, columns // 256], dim=2).to(torch.uint8)[None]
    found = views(image, np.array([[256, 341]]), protocol("grid_crop", size=224))[:, 0].int()
    assert found.shape == (50, 224, 224, 3)
    corners = [(int(view[0, 0, 0]), int(view[0, 0, 1] + 256 * view[0, 0, 2])) for view in found]
    # The margins of 32 rows and 117 columns in quarters: 58.5 goes to the even 58, as torchvision's center does.
    expected = [
        (0, 0), (0, 29), (0, 58), (0, 88), (0, 117),
        (8, 0), (8, 29), (8, 58), (8, 88), (8, 117),
        (16, 0), (16, 29), (16, 58), (16, 88), (16, 117),
        (24, 0), (24, 29), (24, 58), (24, 88), (24, 117),
        (32, 0), (32, 29), (32, 58), (32, 88), (32, 117),
    ]  # fmt: skip
    assert corners[:25] == expected
    assert corners[25:] == [(top, left + 223) for top, left in expected], "the reflections in the same order"
    for view, (top, left) in enumerate(expected):
        crop = image[0, top : top + 224, left : left + 224].int()
        assert torch.equal(found[view], crop) and torch.equal(found[25 + view], crop.flip(1))


def test_an_image_of_the_crops_size_is_its_own_view() -> None:
    images, sizes = batch([(5, 5)])
    for name in NAMES:
        assert torch.equal(views(images, sizes, protocol(name))[0], images)


def test_an_image_smaller_than_the_crop_is_refused() -> None:
    images, sizes = batch([(5, 5), (4, 9)])
    with pytest.raises(AssertionError, match="smaller than 5"):
        views(images, sizes, protocol("center"))


def test_merge_averages_softmax_and_logits_in_float32() -> None:
    logits = torch.tensor([[[10.0, 0.0, -5.0]], [[0.0, 11.0, 7.0]], [[8.0, 7.9, 7.9]]])
    softmax, mean = merge(logits)
    expected = torch.stack([torch.softmax(view.double(), 1) for view in logits]).mean(0)
    torch.testing.assert_close(softmax, expected.float())
    torch.testing.assert_close(mean, torch.tensor([[6.0, 6.3, 3.3]]))
    assert softmax.argmax() == 0 and mean.argmax() == 1, "the two averages can disagree, so the choice matters"
    assert merge(logits.bfloat16())[0].dtype == torch.float32


def test_every_protocol_of_conf_has_views(composed) -> None:
    for name in (*NAMES, "grid_crop", "dense", "crops_144"):
        rule = composed(f"protocol={name}").protocol
        assert rule.name == name and rule.side == default_side(name, 256)
        found = 0
        for side in rule.sides:
            image, sizes = batch([(side, side + 3)])
            ((_, group),) = view_groups(image, sizes, replace(rule, side=side))
            found += len(list(group))
        assert found == num_views(rule)
    assert num_views(composed("protocol=crops_144").protocol) == 144
    assert num_views(composed("protocol=dense", "protocol.side=[256,384,512]").protocol) == 6
    assert num_views(composed("protocol=grid_crop", "protocol.side=[256,384,512]").protocol) == 150


def crops_by_pillow(image: Image.Image, size: int) -> list[np.ndarray]:
    """Slow reference: the 36 views of one image at one side (Szegedy et al. 2015, section 7)."""
    side, (width, height) = min(image.size), image.size
    squares, crops = [], []
    for share in (0, 0.5, 1):
        left, top = round((width - side) * share), round((height - side) * share)
        squares.append(image.crop((left, top, left + side, top + side)))
    for square in squares:
        crops += [
            Image.fromarray(crop.numpy())
            for crop in views_by_torchvision(torch.tensor(np.array(square)), protocol("five_crop", size=size))
        ]
    crops += [square.resize((size, size), Image.Resampling.BICUBIC) for square in squares]
    return [np.array(crop) for crop in (*crops, *(ImageOps.mirror(crop) for crop in crops))]


@pytest.mark.parametrize("extent", [(256, 341), (352, 352), (401, 288)])
def test_144_crops_equal_those_of_a_slow_loop(extent, photographs) -> None:
    height, width = extent
    image = photographs["china"].resize((width, height))
    rule = replace(protocol("crops_144", size=224), side=min(extent))
    found = views(torch.tensor(np.array(image))[None], np.array([extent]), rule)[:, 0]
    expected = torch.tensor(np.stack(crops_by_pillow(image, 224)))
    assert found.shape == expected.shape == (36, 224, 224, 3)
    cut = [view for view in range(36) if view % 18 < 15]
    assert torch.equal(found[cut], expected[cut])
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= 2 and difference.float().mean() < 0.005, "resized on the device, not by Pillow"


def test_144_crops_of_several_images_do_not_mix() -> None:
    images, sizes = batch([(8, 8), (8, 13), (10, 8)])
    rule = replace(protocol("crops_144", size=5), side=8)
    together = views(images, sizes, rule)
    for slot in range(3):
        assert torch.equal(together[:, slot], views(images[slot : slot + 1], sizes[slot : slot + 1], rule)[:, 0])
    assert SIDES_144 == [256, 288, 320, 352]


def test_dense_views_are_whole_images_and_their_reflections() -> None:
    images, sizes = batch([(6, 9), (7, 5), (6, 9), (5, 5)])
    groups = [(slots, tuple(group)) for slots, group in view_groups(images, sizes, protocol("dense"))]
    assert sorted(slot for slots, _ in groups for slot in slots.tolist()) == [0, 1, 2, 3] and len(groups) == 3
    for slots, group in groups:
        once, reflected = group
        for position, slot in enumerate(slots.tolist()):
            height, width = sizes[slot].tolist()
            whole = images[slot, :height, :width]
            assert torch.equal(once[position], whole) and torch.equal(reflected[position], whole.flip(1))


def test_views_do_not_depend_on_how_many_squares_are_resized_at_once(monkeypatch) -> None:
    images, sizes = batch([(40, 40), (40, 61), (55, 40), (40, 47)])
    rule = replace(protocol("crops_144", size=9), side=40)
    whole, interpolate, held = views(images, sizes, rule), torch.nn.functional.interpolate, []

    def counted(pixels: Tensor, *arguments, **options) -> Tensor:
        held.append(pixels.nbytes)
        return interpolate(pixels, *arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "interpolate", counted)
    square_bytes = 4 * 3 * 40**2
    for limit, num_at_once in ((square_bytes - 1, 1), (2 * square_bytes, 2), (3 * square_bytes, 3), (1 << 28, 4)):
        held.clear()
        monkeypatch.setattr("tencrop.evaluation.protocols.RESIZED_BYTES", limit)
        assert torch.equal(views(images, sizes, rule), whole)
        assert max(held) == num_at_once * square_bytes


def test_views_are_made_lazily(monkeypatch) -> None:
    """All 36 views of 256 images together take 1.4 GB."""
    cut, num_cut = module.square_crops, 0

    def counted(*arguments, **options) -> Tensor:
        nonlocal num_cut
        num_cut += 1
        return cut(*arguments, **options)

    monkeypatch.setattr(module, "square_crops", counted)
    images, sizes = batch([(12, 12), (12, 15)])
    ((_, group),) = view_groups(images, sizes, protocol("ten_crop"))
    for number, _ in enumerate(group, start=1):
        assert num_cut == number
    assert num_cut == 10
