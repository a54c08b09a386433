"""Pictures of what a network learned: its first-layer kernels, and test images with their most probable labels.

Both follow Krizhevsky et al. 2012: Figure 3, and Figure 4 (left).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from tencrop.config import UserError
from tencrop.data.sources.class_names import label_names
from tencrop.data.store.encode import Undecodable
from tencrop.data.store.manifest import open_split
from tencrop.evaluation.predictions import Scores, load_scores
from tencrop.models.weights import load_weights
from tencrop.report.collect import Result, Run
from tencrop.report.pictures import data_url, fixed_order, image_picture
from tencrop.report.templating import render

MAX_KERNELS = 256
TILE_PIXELS = 44  # minimum side of a kernel on the page; AlexNet's 11 × 11 kernels are enlarged four times
NUM_IMAGES, NUM_WRONG = 8, 4  # Figure 4 shows eight images, half of them wrong
NUM_BARS = 5


def kernel_figure(run: Run) -> Markup:
    """The first layer's kernels as an HTML figure, or a sentence that tells why there are none."""
    path = run.folder / "checkpoints" / "last.ckpt"
    if not path.exists():
        return _unavailable("kernels", f"{path.name} is not in the run folder")
    try:
        # The moving average where the checkpoint has one, as in evaluation.
        kernels = first_kernels(load_weights(path).state)
    except UserError as error:  # a damaged checkpoint costs the figure alone: errors are computed from saved scores
        return _unavailable("kernels", str(error))
    if kernels is None:
        return _unavailable("kernels", "no layer takes the image’s channels")
    num, channels, height, width = kernels.shape
    picture = kernel_picture(kernels[:MAX_KERNELS])
    shown = f"The first {MAX_KERNELS} of " if num > MAX_KERNELS else ""
    caption = f"{shown}{num} kernels of {height} × {width} × {channels}, each stretched to its own range."
    return render("kernels.html", url=data_url(picture), width=picture.width, caption=caption)


def first_kernels(state: dict) -> np.ndarray | None:
    """float [K, C, h, w] of the first weight over C in {1, 3} channels and more than one pixel; None without one."""
    # state_dict keeps the order of definition, and networks define the layer on the image first. A 1 × 1 convolution
    # over the image (a learned color transform) would be a picture of one pixel.
    for value in state.values():
        if getattr(value, "ndim", 0) == 4 and value.shape[1] in (1, 3) and min(value.shape[2:]) > 1:
            return value.float().numpy()
    return None


def kernel_picture(kernels: np.ndarray) -> Image.Image:
    """Kernels [K, C, h, w] as tiles of a near-square grid, RGBA; each stretched to 0..255, enlarged pixel by pixel."""
    num, channels, height, width = kernels.shape
    # One range per kernel, over all its channels: per channel a gray edge would take on colors that it does not have.
    low = kernels.min(axis=(1, 2, 3), keepdims=True)
    high = kernels.max(axis=(1, 2, 3), keepdims=True)
    stretched = (kernels - low) / np.where(high > low, high - low, 1)
    pixels = np.round(255 * stretched).astype(np.uint8).transpose(0, 2, 3, 1)
    pixels = pixels if channels == 3 else np.repeat(pixels, 3, axis=3)
    # whole factors by repetition: any interpolation would draw a smoothness that the kernel does not have
    factor = math.ceil(TILE_PIXELS / max(height, width))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    # 96 kernels of AlexNet make six rows of 16, as in Figure 3
    columns = num if num <= 8 else 8 if num <= 32 else 16
    rows, gap = math.ceil(num / columns), 4
    tile_height, tile_width = pixels.shape[1] + gap, pixels.shape[2] + gap
    # alpha stays 0 in the gaps and in the unused places of the last row
    canvas = np.zeros((rows * tile_height - gap, columns * tile_width - gap, 4), np.uint8)
    for number, tile in enumerate(pixels):
        top, left = number // columns * tile_height, number % columns * tile_width
        canvas[top : top + tile.shape[0], left : left + tile.shape[1], :3] = tile
        canvas[top : top + tile.shape[0], left : left + tile.shape[1], 3] = 255
    return Image.fromarray(canvas)


def panel_figure(run: Run, result: Result) -> Markup:
    """Test images with the five most probable labels as bars, the correct one in red, or a sentence without them.

    The prepared data, or the original files, may be on another machine: then the page has the sentence.
    """
    try:
        scores = load_scores(result.scores)
        if scores.metadata.get("weights_sha256", result.weights_sha256) != result.weights_sha256:
            # softmax and logit averages share one score file, so a later evaluation may have replaced this one's
            raise UserError(f"{result.scores}: of other weights than this result; run evaluate.py again")
        data = run.config["data"]
        split = open_split(data["root"], "val", source=data["source"], data=data["name"])
        # in other data, sample indices would show wrong images
        if split.source_fingerprint != result.facts.get("split_fingerprint", result.source_fingerprint):
            raise UserError(f"{split.root}: prepared from other images than those that were evaluated")
        names = label_names(run.manifest["data"]["classes"])
        if len(names) != scores.softmax.shape[1]:
            raise UserError(f"{run.folder}: its manifest names {len(names)} classes, not those of {result.scores.name}")
        positions = choose_images(scores)
        samples = scores.index if scores.samples is None else scores.samples
        files = [split.read_original(int(samples[position])) for position in positions]
        top_labels = [_top_labels(scores, position) for position in positions]
        cards = [_card(file, top, names) for file, top in zip(files, top_labels, strict=True)]
    except (UserError, Undecodable) as error:
        return _unavailable("test images", str(error))
    num_wrong = sum(int(scores.softmax_ranks[position] != 0) for position in positions)
    num_right = len(positions) - num_wrong
    return render("panel.html", cards=cards, title=result.title, num_wrong=num_wrong, num_right=num_right)


@dataclass(frozen=True)
class TopLabels:
    """The most probable labels of an image, in order of decreasing probability."""

    label: int
    top: tuple[int, ...]
    probabilities: tuple[float, ...]


def choose_images(scores: Scores) -> list[int]:
    """Positions in `scores`: up to NUM_WRONG images whose top-1 is wrong, then correct ones, NUM_IMAGES in all.

    Both kinds are ordered by a fixed hash of the image's index.
    """
    positions = sorted(range(len(scores.index)), key=lambda position: fixed_order(int(scores.index[position])))
    wrong = [position for position in positions if scores.softmax_ranks[position] != 0]
    right = [position for position in positions if scores.softmax_ranks[position] == 0]
    # few correct images, as of a barely trained network, leave more places to wrong ones, and the other way round
    num_wrong = min(NUM_WRONG, len(wrong)) if len(right) >= NUM_IMAGES - NUM_WRONG else NUM_IMAGES - len(right)
    return wrong[:num_wrong] + right[: NUM_IMAGES - num_wrong]


def _top_labels(scores: Scores, position: int) -> TopLabels:
    """The top labels of the image at `position`; on a tie the correct label comes last, as where errors are counted."""
    probabilities, label = scores.softmax[position].tolist(), int(scores.labels[position])
    # the class number breaks further ties, so that the same scores always give the same page
    order = sorted(range(len(probabilities)), key=lambda k: (-probabilities[k], k == label, k))
    top = tuple(order[:NUM_BARS])
    return TopLabels(label, top, tuple(probabilities[k] for k in top))


def _card(file: bytes, top_labels: TopLabels, names: list[str]) -> dict[str, Any]:
    """The values of one image in panel.html."""
    picture = image_picture(file)
    bars = [
        (label, names[label], f"{100 * probability:.1f}")
        for label, probability in zip(top_labels.top, top_labels.probabilities, strict=True)
    ]
    return {"picture": picture, "label": top_labels.label, "name": names[top_labels.label], "bars": bars}


def _unavailable(what: str, reason: str) -> Markup:
    return render("sentence.html", text=f"No {what} to show: {reason}.")
