"""Every image is scored once, on one or several processes, with the scores of a slow loop over the files."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tencrop.config import Config, UserError
from tencrop.evaluation.errors import error_rate
from tencrop.evaluation.inference import (
    build_network,
    forward,
    open_val_split,
    score_part,
)
from tencrop.evaluation.predictions import Scores
from tencrop.evaluation.processes import score_split

MEAN, STD = [120.0, 110.0, 100.0], [60.0, 61.0, 62.0]
PROTOCOL = ("protocol=five_crop", "protocol.side=38", "protocol.filter=bilinear")


def five_crops(image: Image.Image, side: int, size: int) -> list[Tensor]:
    """Slow reference: rescale with Pillow, crop by slicing."""
    scale = side / min(image.size)
    width, height = (side if edge == min(image.size) else int(edge * scale + 1e-9) for edge in image.size)
    pixels = torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BILINEAR)))
    bottom, right = height - size, width - size
    places = [(0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2))]
    return [pixels[top : top + size, left : left + size] for top, left in places]


def scores_by_hand(config: Config, network: nn.Module, number: int) -> Tensor:
    """Softmax [K] of one image of the split, averaged over its five crops."""
    image = Image.open(io.BytesIO(open_val_split(config).read_original(number))).convert("RGB")
    crops = torch.stack(five_crops(image, 38, 32)).float()
    inputs = ((crops - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        return network.eval()(inputs).softmax(1).mean(0)


def test_scores_equal_those_of_a_slow_loop(make_config, make_task, tmp_path) -> None:
    task, network = make_task(make_config(*PROTOCOL))
    scores = score_split(task, network, tmp_path)
    assert scores is not None and set(scores.index.tolist()) == set(range(501)) and len(scores.index) == 501
    assert scores.labels.tolist() == [
        number // 84 if number < 252 else 3 + (number - 252) // 83 for number in range(501)
    ]
    for number in (0, 1, 250, 499, 500):
        expected = scores_by_hand(task.config, network, number)
        torch.testing.assert_close(scores.softmax[number].float(), expected, rtol=2e-3, atol=2e-4)
    assert scores.softmax.float().sum(1) == pytest.approx(torch.ones(501).tolist(), abs=2e-3)
    assert 0 < error_rate(scores.ranks("softmax"), 1).fraction <= 1
    assert scores.metadata == task.identity and scores.view_logits is None


def test_class_scores_are_float32_in_every_precision(make_config, make_task) -> None:
    task, _ = make_task(make_config("training.precision=bf16"))
    with torch.inference_mode():
        logits = forward(build_network(task).eval(), torch.randn(8, 3, 32, 32), task.config)
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())


def test_more_processes_than_images(make_config, make_task, coordinate_store) -> None:
    root = coordinate_store([(40, 40), (36, 50)], num_classes=None)
    config = make_config(f"data.root={root}", "protocol=center", "protocol.side=null")
    task, network = make_task(config)
    split = open_val_split(config)
    parts = [score_part(task, network, split, rank=rank, num_ranks=3) for rank in range(3)]
    assert sorted(len(part.index) for part in parts) == [0, 1, 1]
    assert {part.softmax.shape[1] for part in parts} == {6}


@pytest.mark.parametrize("loader", ["beton", "torch"])
def test_views_are_saved_on_request(loader: str, make_config, make_task) -> None:
    config = make_config("protocol=ten_crop", f"data.loader={loader}", "training.precision=bf16")
    config.save_views = True
    task, network = make_task(config)
    split = open_val_split(config)
    part: Scores = score_part(task, network, split, rank=2, num_ranks=40)
    assert part.view_logits is not None and part.view_logits.shape == (len(part.index), 10, 6)
    torch.testing.assert_close(part.view_logits.float().mean(1), part.logits.float(), rtol=1e-2, atol=1e-2)


def test_a_damaged_image_is_named(make_config, make_task, photo_folder, data_config, tmp_path) -> None:
    from tencrop.data.preparation.prepare import prepare

    root = prepare(data_config(photo_folder, tmp_path / "data"), workers=1, progress=False)
    config = make_config(f"data.root={root}", "protocol.side=40")
    beton = open_val_split(config).beton
    start = int(beton.pointers[4])
    with open(root / "val.beton", "r+b") as file:
        file.seek(start + 2)
        file.write(b"\\0" * (int(beton.payload_bytes[4]) - 2))
    task, network = make_task(config)
    with pytest.raises(UserError, match=open_val_split(config).names(4)):
        score_split(task, network, tmp_path)


DENSE = ("model=vgg_a", "+model.kwargs.width=0.1", "+model.kwargs.img_size=32", "protocol=dense")


def dense_by_hand(config: Config, network: nn.Module, number: int, sides: list[int]) -> Tensor:
    """Softmax [K] of one image: the head applied to every window of the features, for the image and its reflection."""
    image = Image.open(io.BytesIO(open_val_split(config).read_original(number))).convert("RGB")
    softmax = []
    features, classifier = network.get_submodule("features"), network.get_submodule("classifier")
    for side in sides:
        width, height = (
            side if edge == min(image.size) else int(edge * side / min(image.size) + 1e-9) for edge in image.size
        )
        scaled = image.resize((width, height), Image.Resampling.BILINEAR)
        for view in (scaled, scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
            pixels = (torch.tensor(np.array(view)).float() - torch.tensor(MEAN)) / torch.tensor(STD)
            with torch.inference_mode():
                maps = features(pixels.permute(2, 0, 1)[None])
                assert maps.shape[2:] == (height // 32, width // 32)
                windows = [classifier(maps[0, :, row, column]) for row, column in np.ndindex(*maps.shape[2:])]
                softmax.append(torch.stack(windows).mean(0).softmax(0))
    return torch.stack(softmax).mean(0)


Corners = list[tuple[int, int]]  # top and left of each crop of 32 x 32 pixels


def views_by_hand(image: Image.Image, box: tuple[int, int, int, int], side: tuple[int, int], crops: Corners) -> Tensor:
    """Slow reference: cut out `box` (left, top, right, bottom), resize to `side` (width, height), crop by slicing."""
    pixels = torch.from_numpy(np.array(image.crop(box).resize(side, Image.Resampling.BILINEAR)))
    return torch.stack([pixels[top : top + 32, left : left + 32] for top, left in crops])


TEN_OF_40 = [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
GRID_OF_40 = [(top, left) for top in (0, 2, 4, 6, 8) for left in (0, 2, 4, 6, 8)]


@pytest.mark.parametrize(
    "options, side, crops, is_reflected",
    [
        (("center", "resize=warp", "side=32"), 32, [(0, 0)], False),
        (("flip_pair", "resize=warp", "side=40"), 40, [(4, 4)], True),
        (("ten_crop", "resize=warp", "side=40"), 40, TEN_OF_40, True),
        (("grid_crop", "resize=warp", "side=40"), 40, GRID_OF_40, True),
        (("center", "resize=central_fraction", "side=null"), None, [(0, 0)], False),
        (("flip_pair", "resize=central_fraction", "side=null"), None, [(0, 0)], True),
    ],
)
@pytest.mark.parametrize("loader", ["beton", "torch"])
def test_stretched_views_equal_those_of_a_slow_loop(
    options: tuple[str, ...], side: int | None, crops: Corners, is_reflected: bool, loader: str, make_config, make_task
) -> None:
    words = [f"protocol={options[0]}", *(f"protocol.{option}" for option in options[1:])]
    config = make_config(*words, "protocol.filter=bilinear", f"data.loader={loader}")
    task, network = make_task(config)
    split = open_val_split(config)
    part = score_part(task, network, split, rank=1, num_ranks=40)
    for position, number in enumerate(part.index.tolist()):
        image = Image.open(io.BytesIO(split.read_original(number))).convert("RGB")
        width, height = image.size
        if side is not None:
            box, extent = (0, 0, width, height), (side, side)
        else:
            left, top = int((width - width * 0.875) / 2), int((height - height * 0.875) / 2)
            box, extent = (left, top, width - left, height - top), (32, 32)
        pixels = views_by_hand(image, box, extent, crops).float()
        pixels = torch.cat([pixels, pixels.flip(2)]) if is_reflected else pixels
        inputs = ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            logits = network.eval()(inputs)
        torch.testing.assert_close(part.softmax[position], logits.softmax(1).mean(0), rtol=0, atol=1e-5)
        torch.testing.assert_close(part.logits[position], logits.mean(0), rtol=0, atol=1e-5)


def test_grid_crops_at_two_sides_equal_those_of_a_slow_loop(make_config, make_task) -> None:
    """Images of 36 x 36 up to 44 x 44, at shorter sides of 34 and 37."""
    config = make_config("protocol=grid_crop", "protocol.side=[34,37]", "protocol.filter=bilinear")
    task, network = make_task(config)
    split = open_val_split(config)
    part = score_part(task, network, split, rank=2, num_ranks=40)
    assert len(part.index) == 12
    for position, number in enumerate(part.index.tolist()):
        image = Image.open(io.BytesIO(split.read_original(number))).convert("RGB")
        views = []
        for side in (34, 37):
            short = min(image.size)
            width, height = (side if length == short else side * length // short for length in image.size)
            # Python's round sends halves to even numbers
            tops = [round((height - 32) * share) for share in (0, 0.25, 0.5, 0.75, 1)]
            lefts = [round((width - 32) * share) for share in (0, 0.25, 0.5, 0.75, 1)]
            crops = [(top, left) for top in tops for left in lefts]
            views.append(views_by_hand(image, (0, 0, *image.size), (width, height), crops))
            views.append(views[-1].flip(2))
        inputs = ((torch.cat(views).float() - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            softmax = network.eval()(inputs).softmax(1)
        assert len(softmax) == 100
        torch.testing.assert_close(part.softmax[position], softmax.mean(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sides", [[64], [64, 70, 96]])
def test_dense_scores_equal_those_of_a_slow_loop(sides: list[int], make_config, make_task) -> None:
    config = make_config(*DENSE, f"protocol.side={sides}", "protocol.filter=bilinear", "hardware.max_micro_batch=20")
    config.save_views = True
    task, network = make_task(config)
    split = open_val_split(config)
    part = score_part(task, network, split, rank=3, num_ranks=10)
    assert part.view_logits is not None and part.view_logits.shape == (len(part.index), 2 * len(sides), 6)
    for position in (0, 17, len(part.index) - 1):
        expected = dense_by_hand(config, network.eval(), int(part.index[position]), sides)
        torch.testing.assert_close(part.softmax[position].float(), expected, rtol=2e-3, atol=2e-4)


def test_144_crops_average_over_all_sides(make_config, make_task) -> None:
    """The scores are the mean over the four sides of the scores at each side alone."""
    options = ("protocol=crops_144", "protocol.filter=bilinear")
    config = make_config(*options, "protocol.side=[36,38,40,44]")
    task, network = make_task(config)
    split = open_val_split(config)
    together = score_part(task, network, split, rank=0, num_ranks=40)
    alone = []
    for side in (36, 38, 40, 44):
        task, _ = make_task(make_config(*options, f"protocol.side={side}"))
        alone.append(score_part(task, network, split, rank=0, num_ranks=40).softmax.float())
    assert len(together.index) == 12
    torch.testing.assert_close(together.softmax.float(), torch.stack(alone).mean(0), rtol=2e-3, atol=2e-4)


class OutOfMemory(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("hardware.max_micro_batch=null", "=null: cpu ran out of memory in a forward pass of up to 32 images; set a "
         "smaller one, such as hardware.max_micro_batch=8"),
        ("hardware.max_micro_batch=3", "=3: cpu ran .* such as hardware.max_micro_batch=1"),
        ("hardware.max_micro_batch=1", "=1: cpu ran .* of up to 1 images; choose a GPU with more memory"),
    ],
    ids=["default", "smaller", "one image"],
)  # fmt: skip
def test_a_forward_pass_that_runs_out_of_memory_is_explained(make_config, make_task, word, said, tmp_path) -> None:
    task, _ = make_task(make_config(word))
    with pytest.raises(UserError, match=rf"^hardware\.max_micro_batch{said}"):
        score_split(task, OutOfMemory(), tmp_path)


def test_dense_refuses_a_network_that_cannot_be_converted(make_config, make_task, tmp_path) -> None:
    task, network = make_task(make_config("protocol=dense"))
    with pytest.raises(UserError, match="lenet5_dense cannot be made fully convolutional"):
        score_split(task, network, tmp_path)


def test_without_a_terminal_progress_is_printed_as_plain_lines(
    make_config, make_task, monkeypatch, capfd, tmp_path
) -> None:
    task, network = make_task(make_config("protocol=center", "hardware.max_micro_batch=200"))
    score_split(task, network, tmp_path)
    assert capfd.readouterr() == ("", ""), "it took no time"
    monkeypatch.setattr("tencrop.progress.LINE_EVERY_S", 0)
    score_split(task, network, tmp_path)
    out, err = capfd.readouterr()
    assert out == "" and "\x1b" not in err and "\r" not in err
    assert [line.split(" images")[0] for line in err.splitlines()] == [
        "evaluating: 200 of 501", "evaluating: 400 of 501", "evaluating: 501 of 501",
    ]  # fmt: skip
    assert err.endswith(" images/s\n")
