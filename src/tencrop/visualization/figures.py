"""Draw figures of an untrained model, or of the trained weights of a run, with captions: one function per figure."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from tencrop.complexity.golden import golden_counts
from tencrop.config import Config, UserError, VisualizationConfig
from tencrop.config.run_config import is_run_folder
from tencrop.config.writable import check_writable
from tencrop.data.sources.class_names import label_names
from tencrop.evaluation.evaluate import EVALUATIONS
from tencrop.evaluation.results import load_result
from tencrop.evaluation.targets import EvaluationTarget
from tencrop.models.factory import build_model
from tencrop.visualization.architecture import architecture_figure
from tencrop.visualization.attention import attention_figure, attention_maps
from tencrop.visualization.drawing import save_figure
from tencrop.visualization.occlusion import occlusion, occlusion_figure
from tencrop.visualization.patches import NUM_PATCHES, NUM_UNITS, patch_box, patches_figure, projection, top_activations
from tencrop.visualization.receptive_field import effective_field, field_figure, theoretical_side
from tencrop.visualization.record import Record
from tencrop.visualization.retrieval import NUM_QUERIES, hidden_features, nearest, retrieval_figure
from tencrop.visualization.trace import NotApplicable, last_maps, trace
from tencrop.visualization.tradeoff import measured, published, tradeoff_figure, tradeoff_record
from tencrop.visualization.trained_model import TrainedModel, hash_order, load_trained_model, select_images

FIGURES = Path("figures")  # default output folder of models without a run folder
NUM_FIELD_IMAGES = 16  # averaged, as by Luo et al.: the gradient for a single image shows the edges in it
NUM_OCCLUDED = 5
NUM_ATTENDED = 4
NUM_SEARCHED = 500  # images among which the strongest activations of a unit are searched
IMAGENET_CLASSES = 1000
REMEDY = "free disk space, or name another folder with output=DIR"
FigureAndRecord = tuple[Figure, Record]


def draw_model(config: Config, name: str, *, command: str) -> Iterator[Path]:
    """Draw the figure `architecture` or `tradeoff`, which need no trained weights; yields the paths written."""
    default = FIGURES if name == "tradeoff" else FIGURES / config.model.name.replace("/", "-")
    out = default if config.output is None else Path(config.output)
    check_writable(out / f"{name}.svg", remedy=REMEDY)
    if name == "tradeoff":
        figure, record = _tradeoff(config)
    else:
        torch.manual_seed(config.seed)  # not visible in the figure; keeps the weights reproducible
        network = build_model(config.model, num_classes=config.data.num_classes or IMAGENET_CLASSES)
        figure, record = _architecture(network, config)
    yield from save_figure(figure, out, name, replace(record, command=command))


def draw_run(target: EvaluationTarget, config: VisualizationConfig, *, command: str) -> Iterator[Path]:
    """Draw the figure that `config` names, or all applicable ones, for trained weights; yields the paths written."""
    draw = {
        "architecture": lambda model, _: _architecture(model.network, model.config),
        "receptive_field": _receptive_field,
        "retrieval": _retrieval,
        "occlusion": _occlusion,
        "patches": _patches,
        "attention": _attention,
    }
    # "tradeoff" is missing, because it compares many runs
    names, out = list(draw) if config.figure == "all" else [config.figure], _folder(target, config)
    check_writable(*(out / f"{name}.svg" for name in names), remedy=REMEDY)  # now, not after minutes of computation
    model = load_trained_model(target)
    for name in names:
        try:
            figure, record = draw[name](model, config)
        except NotApplicable:
            if config.figure != "all":
                raise
            continue  # figure=all skips what the network lacks, such as attention in a ResNet
        yield from save_figure(figure, out, name, replace(record, command=command))


def _folder(target: EvaluationTarget, config: VisualizationConfig) -> Path:
    """The output folder: output= if given; RUN/figures for a checkpoint in RUN/checkpoints; otherwise figures/MODEL."""
    if config.output is not None:
        return Path(config.output)
    run_dir = target.path.absolute().parent.parent
    return run_dir / "figures" if is_run_folder(run_dir) else FIGURES / target.config.model.name.replace("/", "-")


def _architecture(network: torch.nn.Module, config: Config) -> FigureAndRecord:
    name = config.model.name
    figure = architecture_figure(network, image_size=config.image_size, title=name)
    caption = (
        "Stages, each with its output size, number of parameters and layers. Height: square root of the side of the"
        " maps; width: logarithm of their number. Blue: maps; green: tokens; orange: vectors."
    )
    return figure, Record("Architecture", caption, name)


def _tradeoff(config: Config) -> FigureAndRecord:
    counts = golden_counts()
    series = published(counts)  # errors from the papers, multiply-adds from our own counts
    # [!.] skips hidden files
    results = [path for folder in (Path(config.runs), EVALUATIONS) for path in folder.rglob("[!.]*.result.json")]
    own = measured(_readable(sorted(results)), counts)
    return tradeoff_figure(series, own), tradeoff_record(series)


def _readable(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """Load the results in these files; a broken file, as in a partly copied folder, is reported and skipped."""
    for path in paths:
        try:
            yield load_result(path)
        except UserError as error:
            print(f"error: left out of the figure: {error}", file=sys.stderr)


def _receptive_field(model: TrainedModel, config: VisualizationConfig) -> FigureAndRecord:
    index = select_images(model.split("val"), config.images, num_images=NUM_FIELD_IMAGES)
    images = model.inputs(model.load_images("val", index).pixels)
    layer = _layer_with_maps(model, config)
    # Luo et al.: training enlarges the effective field, so both are shown
    before, after = (effective_field(net, images, layer=layer) for net in (model.initial, model.network))
    # for comparison: the effective field is usually much smaller than the theoretical one
    theoretical = theoretical_side(model.network, layer, image_size=model.config.image_size)
    pair = [("before training" if model.started_from_initial else "random weights", before), ("after", after)]
    figure = field_figure(pair, title=f"Receptive field of the center of {layer}", theoretical=theoretical)
    caption = (
        f"Absolute gradient of the center of {layer}’s maps with respect to each pixel, averaged over {len(index)} test"
        " images (Luo et al. 2016), each panel on its own scale. Strong: above 4.55% of the maximum, given as the side"
        " of a square of the same area. The dashed box encloses all pixels with any influence."
    )
    return figure, _record(model, "Effective receptive field", caption)


def _retrieval(model: TrainedModel, config: VisualizationConfig) -> FigureAndRecord:
    queries = model.load_images("val", select_images(model.split("val"), config.images, num_images=NUM_QUERIES))
    # sorted indices, so that the training file is read sequentially
    candidates = model.load_images("train", np.sort(hash_order(model.split("train").num_samples)[: config.candidates]))
    features = [hidden_features(model.network, model.inputs(these.pixels)) for these in (queries, candidates)]
    found = nearest(*features)
    names = label_names(model.classes)
    title = f"Nearest training images: {model.config.model.name}"
    figure = retrieval_figure(queries, candidates, found, names=names, title=title)
    caption = (
        "Test images, and the training images nearest by Euclidean distance in the last hidden layer (after Krizhevsky"
        f" et al. 2012, figure 4), among {len(candidates.index):,} searched. Blue frame: same class; orange: another"
        " class, which is named. The number above an image is its distance."
    )
    return figure, _record(model, "Nearest training images", caption)


def _occlusion(model: TrainedModel, config: VisualizationConfig) -> FigureAndRecord:
    images = model.load_images("val", select_images(model.split("val"), config.images, num_images=NUM_OCCLUDED))
    found = [
        occlusion(model.network, image, int(label))
        for image, label in zip(model.inputs(images.pixels), images.labels, strict=True)
    ]
    names = label_names(model.classes)
    title = f"Occlusion sensitivity: {model.config.model.name}"
    figure = occlusion_figure(images, found, names=names, title=title)
    caption = (
        f"Probability of the correct class while a square of {found[0].square} pixels, in the mean color that"
        " normalization subtracts, covers the image at each position (after Zeiler and Fergus 2013). Dark: the"
        " classification depends on this part of the image."
    )
    return figure, _record(model, "Occlusion", caption)


def _patches(model: TrainedModel, config: VisualizationConfig) -> FigureAndRecord:
    images = model.load_images("val", select_images(model.split("val"), config.images, num_images=NUM_SEARCHED))
    inputs = model.inputs(images.pixels)
    layer = _layer_with_maps(model, config)
    network = model.network
    found = top_activations(network, inputs, layer, num=NUM_PATCHES)
    # a dead ReLU has no patches to show
    active = [unit for unit, top in enumerate(found) if top[0].value > 0][:NUM_UNITS]
    if not active:
        raise NotApplicable(f"figure=patches: no unit of {layer} is active on any image; choose another layer=")
    # one backward pass per patch, NUM_UNITS x NUM_PATCHES in total
    rows = []
    for unit in active:
        pairs = []
        for one in found[unit]:
            projected = projection(network, inputs[one.image], layer, unit, one)
            top, left, bottom, right = patch_box(projected)
            pairs.append((images.pixels[one.image, top:bottom, left:right], projected[:, top:bottom, left:right]))
        rows.append((unit, pairs))
    figure = patches_figure(rows, title=f"Patches that activate units of {layer} most")
    caption = (
        f"The first {len(rows)} active units of {layer}: the patches of {len(inputs):,} test images that activate each"
        " most and, beside each patch, its projection by a deconvolutional network, which shows the pixels responsible"
        " (after Zeiler and Fergus 2013)."
    )
    return figure, _record(model, "Patches that activate units", caption)


def _attention(model: TrainedModel, config: VisualizationConfig) -> FigureAndRecord:
    images = model.load_images("val", select_images(model.split("val"), config.images, num_images=NUM_ATTENDED))
    name = model.config.model.name
    attention = attention_maps(model.network, model.inputs(images.pixels), name=name)
    # 1 with a class token, 2 with DeiT's distillation token as well, 0 with average pooling over the patches
    num_prefix = int(model.network.num_prefix_tokens)  # type: ignore[arg-type]
    names = label_names(model.classes)
    figure = attention_figure(images, attention, num_prefix=num_prefix, names=names, title=f"Attention of {name}")
    query = "the class token" if num_prefix else "the average patch"
    caption = (
        f"Attention of {query} to each patch: rollout over all layers (Abnar and Zuidema 2020), and the first heads of"
        f" the last of {len(attention)} layers. Each panel is on its own scale; yellow is the most."
    )
    return figure, _record(model, "Attention", caption)


def _layer_with_maps(model: TrainedModel, config: VisualizationConfig) -> str:
    """Name of the layer to visualize: layer= if given, otherwise the last layer whose output is feature maps."""
    calls = trace(model.network, torch.zeros(1, 3, model.config.image_size, model.config.image_size))
    if config.layer is None:
        return last_maps(calls).name
    # four dimensions: [N, C, H, W]
    with_maps = [call.name for call in calls if len(call.output) == 4]
    if config.layer not in with_maps:
        raise UserError(f"layer={config.layer}: has no maps as output; choose one of {', '.join(with_maps)}")
    return config.layer


def _record(model: TrainedModel, title: str, caption: str) -> Record:
    return Record(title, caption, model.config.model.name, model.weights_sha256)
