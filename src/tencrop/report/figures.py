"""Pictures of what a network learned: its first-layer kernels, and test images with their most probable labels.

After Krizhevsky et al. 2012, Figures 3 and 4 (left). Called by page.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from tencrop.config import UserError
from tencrop.data.sources.class_names import label_names
from tencrop.data.store.encode import Undecodable, decode_rgb
from tencrop.data.store.manifest import open_split
from tencrop.evaluation.predictions import Scores, load_scores
from tencrop.models.weights import load_weights
from tencrop.report.collect import Result, Run

MOST_KERNELS = 256
TILE_PIXELS = 44  # side that a kernel is enlarged to, at least
PICTURE_PIXELS = 224  # shorter side that a test image is reduced to, at most
NUM_IMAGES, NUM_WRONG = 8, 4
NUM_BARS = 5


def kernel_figure(run: Run) -> str:
    """The first layer's kernels as an HTML figure; a sentence where the network's first layer has none to show."""
    path = run.folder / "checkpoints" / "last.ckpt"
    if not path.exists():
        return f"<p>No kernels to show: {escape(path.name)} is not in the run folder.</p>"
    try:
        found = first_kernels(load_weights(path).state)
    except UserError as error:  # the run's errors are of saved scores, and other runs' may be whole
        return f"<p>No kernels to show: {escape(str(error))}.</p>"
    if found is None:
        return "<p>No kernels to show: no layer takes the image’s channels.</p>"
    num, channels, height, width = found.shape
    picture = kernel_picture(found[:MOST_KERNELS])
    shown = f"the first {MOST_KERNELS} of " if num > MOST_KERNELS else ""
    caption = f"{shown}{num} kernels of {height} × {width} × {channels}, each stretched to its own range"
    image = f'<img class=pixels src="{data_url(picture)}" width={picture.width} alt="first-layer kernels">'
    return f"<figure>{image}<figcaption>{caption[0].upper() + caption[1:]}.</figcaption></figure>"


def first_kernels(state: dict) -> np.ndarray | None:
    """float [K, C, h, w] of the first weight over C in {1, 3} channels and more than one pixel; None without one."""
    for value in state.values():
        if getattr(value, "ndim", 0) == 4 and value.shape[1] in (1, 3) and min(value.shape[2:]) > 1:
            return value.float().numpy()
    return None


def kernel_picture(kernels: np.ndarray) -> Image.Image:
    """Kernels [K, C, h, w] as tiles of a near-square grid, RGBA; each stretched to 0..255, enlarged pixel by pixel."""
    num, channels, height, width = kernels.shape
    low = kernels.min(axis=(1, 2, 3), keepdims=True)
    high = kernels.max(axis=(1, 2, 3), keepdims=True)
    stretched = (kernels - low) / np.where(high > low, high - low, 1)
    pixels = np.round(255 * stretched).astype(np.uint8).transpose(0, 2, 3, 1)
    pixels = pixels if channels == 3 else np.repeat(pixels, 3, axis=3)
    factor = math.ceil(TILE_PIXELS / max(height, width))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    columns = num if num <= 8 else 8 if num <= 32 else 16
    rows, gap = math.ceil(num / columns), 4
    tile_height, tile_width = pixels.shape[1] + gap, pixels.shape[2] + gap
    canvas = np.zeros((rows * tile_height - gap, columns * tile_width - gap, 4), np.uint8)
    for number, tile in enumerate(pixels):
        top, left = number // columns * tile_height, number % columns * tile_width
        canvas[top : top + tile.shape[0], left : left + tile.shape[1], :3] = tile
        canvas[top : top + tile.shape[0], left : left + tile.shape[1], 3] = 255
    return Image.fromarray(canvas)


def panel_figure(run: Run, result: Result) -> str:
    """Test images with the five most probable labels as bars, the right one in red; a sentence where there are none."""
    try:
        scores = load_scores(result.scores)
        if scores.metadata.get("weights_sha256", result.weights_sha256) != result.weights_sha256:
            # the result of the other average has the same file
            raise UserError(f"{result.scores}: of other weights than this result; run evaluate.py again")
        data = run.config["data"]
        split = open_split(data["root"], "val", source=data["source"], data=data["name"])
        if split.source_fingerprint != result.source_fingerprint:
            raise UserError(f"{split.root}: prepared from other images than those that were evaluated")
        names = label_names(run.manifest["data"]["classes"])
        if len(names) != scores.softmax.shape[1]:
            raise UserError(f"{run.folder}: its manifest names {len(names)} classes, not those of {result.scores.name}")
        chosen = choose_images(scores)
        pictures = [split.read_original(int(scores.index[position])) for position in chosen]
        cards = [_card(content, _guesses(scores, at), names) for at, content in zip(chosen, pictures, strict=True)]
    except (UserError, Undecodable) as error:
        return f"<p>No test images to show: {escape(str(error))}.</p>"
    wrong = sum(int(scores.softmax_ranks[position] != 0) for position in chosen)
    return (
        f"<div class=panel>{''.join(cards)}</div><p class=caption>The five labels that the network holds most probable"
        f" ({escape(result.title)}); the correct label is under the image, its bar red. Chosen by a fixed hash of the"
        f" image’s number: {wrong} that the network gets wrong, {len(chosen) - wrong} that it gets right.</p>"
    )


@dataclass(frozen=True)
class Guesses:
    """The most probable labels of an image, the most probable first."""

    label: int
    top: tuple[int, ...]
    probabilities: tuple[float, ...]


def choose_images(scores: Scores) -> list[int]:
    """Positions in `scores`: up to NUM_WRONG images whose top-1 is wrong, then right ones, NUM_IMAGES in all.

    Within each kind in the order of a fixed hash of the image's index: the same images for every network that gets
    them right or wrong alike.
    """

    def order(position: int) -> bytes:
        return hashlib.sha256(b"panel %d" % int(scores.index[position])).digest()

    positions = sorted(range(len(scores.index)), key=order)
    wrong = [position for position in positions if scores.softmax_ranks[position] != 0]
    right = [position for position in positions if scores.softmax_ranks[position] == 0]
    num_wrong = min(NUM_WRONG, len(wrong)) if len(right) >= NUM_IMAGES - NUM_WRONG else NUM_IMAGES - len(right)
    return wrong[:num_wrong] + right[: NUM_IMAGES - num_wrong]


def data_url(picture: Image.Image, *, photographic: bool = False) -> str:
    """The picture within a URL: JPEG where photographic, else PNG."""
    buffer = io.BytesIO()
    if photographic:
        picture.convert("RGB").save(buffer, "JPEG", quality=85)
    else:
        picture.save(buffer, "PNG", optimize=True)
    kind = "jpeg" if photographic else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _guesses(scores: Scores, position: int) -> Guesses:
    """The label stands behind those that score like it, as it does where errors are counted."""
    probabilities, label = scores.softmax[position].tolist(), int(scores.labels[position])
    order = sorted(range(len(probabilities)), key=lambda k: (-probabilities[k], k == label, k))
    top = tuple(order[:NUM_BARS])
    return Guesses(label, top, tuple(probabilities[k] for k in top))


def _card(content: bytes, guesses: Guesses, names: list[str]) -> str:
    picture = decode_rgb(content)
    is_small = min(picture.size) < PICTURE_PIXELS / 2
    if min(picture.size) > PICTURE_PIXELS:
        scale = PICTURE_PIXELS / min(picture.size)
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
        )
    url = data_url(picture, photographic=not is_small)
    name = escape(names[guesses.label])
    image = f'<img{" class=pixels" if is_small else ""} src="{url}" alt="{name}">'
    bars = "".join(
        f'<li{" class=right" if label == guesses.label else ""} title="{100 * probability:.1f}%">'
        f'<i style="width:{100 * probability:.1f}%"></i><span>{escape(names[label])}</span></li>'
        for label, probability in zip(guesses.top, guesses.probabilities, strict=True)
    )
    return f"<figure class=card>{image}<figcaption>{name}</figcaption><ol>{bars}</ol></figure>"
