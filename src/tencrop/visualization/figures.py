"""Which figures are drawn of what: a model as configured, or the trained weights of a run. Called by __main__.py."""

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
from tencrop.visualization.patches import NUM_PATCHES, NUM_UNITS, most_excited, patch_box, patches_figure, projection
from tencrop.visualization.receptive_field import effective_field, field_figure, theoretical_side
from tencrop.visualization.record import Record
from tencrop.visualization.retrieval import NUM_QUERIES, hidden_features, nearest, retrieval_figure
from tencrop.visualization.trace import HasNone, last_maps, trace
from tencrop.visualization.tradeoff import measured, published, tradeoff_figure, tradeoff_record
from tencrop.visualization.trained_model import TrainedModel, by_hash, chosen, load_trained_model

FIGURES = Path("figures")  # of models that no run trained
NUM_FIELD_IMAGES = 16
NUM_OCCLUDED = 5
NUM_ATTENDED = 4
NUM_SEARCHED = 500  # images among which those that excite a unit are looked for
IMAGENET_CLASSES = 1000
MEND = "make room, or name another folder with output=DIR"
Drawn = tuple[Figure, Record]


def draw_model(config: Config, name: str, *, command: str) -> Iterator[Path]:
    """The figure that needs no training, architecture or tradeoff: the paths written."""
    default = FIGURES if name == "tradeoff" else FIGURES / config.model.name.replace("/", "-")
    out = default if config.output is None else Path(config.output)
    check_writable(out / f"{name}.svg", mend=MEND)
    if name == "tradeoff":
        figure, record = _tradeoff(config)
    else:
        torch.manual_seed(config.seed)
        network = build_model(config.model, num_classes=config.data.num_classes or IMAGENET_CLASSES)
        figure, record = _architecture(network, config)
    yield from save_figure(figure, out, name, replace(record, command=command))


def draw_run(member: EvaluationTarget, config: VisualizationConfig, *, command: str) -> Iterator[Path]:
    """The figure that `config` names of the member's weights, or all that apply: the paths written."""
    draw = {
        "architecture": lambda subject, _: _architecture(subject.network, subject.config),
        "receptive_field": _receptive_field,
        "retrieval": _retrieval,
        "occlusion": _occlusion,
        "patches": _patches,
        "attention": _attention,
    }
    names, out = list(draw) if config.figure == "all" else [config.figure], _folder(member, config)
    check_writable(*(out / f"{name}.svg" for name in names), mend=MEND)
    subject = load_trained_model(member)
    for name in names:
        try:
            figure, record = draw[name](subject, config)
        except HasNone:
            if config.figure != "all":
                raise
            continue  # of all figures, those that the network has none of are left out
        yield from save_figure(figure, out, name, replace(record, command=command))


def _folder(member: EvaluationTarget, config: VisualizationConfig) -> Path:
    if config.output is not None:
        return Path(config.output)
    run_dir = member.path.absolute().parent.parent
    return run_dir / "figures" if is_run_folder(run_dir) else FIGURES / member.config.model.name.replace("/", "-")


def _architecture(network: torch.nn.Module, config: Config) -> Drawn:
    name = config.model.name
    figure = architecture_figure(network, image_size=config.image_size, title=name)
    caption = (
        "Stages of one output size: that size, the number of parameters, the layers. Height: square root of the maps’"
        " side; width: logarithm of their number. Blue: maps; green: tokens; orange: vectors."
    )
    return figure, Record("Architecture", caption, name)


def _tradeoff(config: Config) -> Drawn:
    counts = golden_counts()
    series = published(counts)
    results = [path for folder in (Path(config.runs), EVALUATIONS) for path in folder.rglob("[!.]*.result.json")]
    own = measured(_readable(sorted(results)), counts)
    return tradeoff_figure(series, own), tradeoff_record(series)


def _readable(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """The results of these files; one that is broken, of a folder half copied, is named and left out."""
    for path in paths:
        try:
            yield load_result(path)
        except UserError as error:
            print(f"error: left out of the figure: {error}", file=sys.stderr)


def _receptive_field(subject: TrainedModel, config: VisualizationConfig) -> Drawn:
    index = chosen(subject.split("val"), config.images, num_images=NUM_FIELD_IMAGES)
    images = subject.inputs(subject.pictures("val", index).pixels)
    layer = _layer_with_maps(subject, config)
    before, after = (effective_field(net, images, layer=layer) for net in (subject.initial, subject.network))
    theoretical = theoretical_side(subject.network, layer, image_size=subject.config.image_size)
    pair = [("before training", before), ("after", after)]
    figure = field_figure(pair, title=f"What the center of {layer} sees", theoretical=theoretical)
    caption = (
        f"Absolute gradient of the center of {layer}’s maps with respect to each pixel, over {len(index)} test images"
        " (Luo et al. 2016), each on its own scale. Strong: above 4.55% of the largest, as the side of a square of the"
        " same area. The dashed box holds every pixel that has any influence."
    )
    return figure, _record(subject, "Effective receptive field", caption)


def _retrieval(subject: TrainedModel, config: VisualizationConfig) -> Drawn:
    queries = subject.pictures("val", chosen(subject.split("val"), config.images, num_images=NUM_QUERIES))
    candidates = subject.pictures("train", np.sort(by_hash(subject.split("train").num_samples)[: config.candidates]))
    features = [hidden_features(subject.network, subject.inputs(these.pixels)) for these in (queries, candidates)]
    found = nearest(*features)
    names = label_names(subject.classes)
    title = f"Nearest training images: {subject.config.model.name}"
    figure = retrieval_figure(queries, candidates, found, names=names, title=title)
    caption = (
        "Test images, and the training images nearest by Euclidean distance in the last hidden layer (after Krizhevsky"
        f" et al. 2012, figure 4), of {len(candidates.index):,} searched. Blue: of the same class; orange: of another,"
        " named. Above each its distance."
    )
    return figure, _record(subject, "Nearest training images", caption)


def _occlusion(subject: TrainedModel, config: VisualizationConfig) -> Drawn:
    pictures = subject.pictures("val", chosen(subject.split("val"), config.images, num_images=NUM_OCCLUDED))
    found = [
        occlusion(subject.network, image, int(label))
        for image, label in zip(subject.inputs(pictures.pixels), pictures.labels, strict=True)
    ]
    names = label_names(subject.classes)
    title = f"What the class rests on: {subject.config.model.name}"
    figure = occlusion_figure(pictures, found, names=names, title=title)
    caption = (
        f"Probability of the correct class while a square of {found[0].square} pixels, of the color that is 0 to the"
        " network, covers each place (after Zeiler and Fergus 2013): dark where the class is lost without what lies"
        " there."
    )
    return figure, _record(subject, "Occlusion", caption)


def _patches(subject: TrainedModel, config: VisualizationConfig) -> Drawn:
    pictures = subject.pictures("val", chosen(subject.split("val"), config.images, num_images=NUM_SEARCHED))
    inputs = subject.inputs(pictures.pixels)
    layer = _layer_with_maps(subject, config)
    network = subject.network
    found = most_excited(network, inputs, layer, num=NUM_PATCHES)
    answering = [unit for unit, excited in enumerate(found) if excited[0].answer > 0][:NUM_UNITS]
    if not answering:
        raise HasNone(f"figure=patches: no unit of {layer} answers to any image; choose another layer=")
    rows = []
    for unit in answering:
        pairs = []
        for one in found[unit]:
            projected = projection(network, inputs[one.image], layer, unit, one)
            top, left, bottom, right = patch_box(projected)
            pairs.append((pictures.pixels[one.image, top:bottom, left:right], projected[:, top:bottom, left:right]))
        rows.append((unit, pairs))
    figure = patches_figure(rows, title=f"What excites the units of {layer}")
    caption = (
        f"The first {len(rows)} units of {layer} that answer to anything: the patches of {len(inputs):,} test images"
        " that excite each most, and beside each what in it does, by the way back of a deconvolutional network (after"
        " Zeiler and Fergus 2013)."
    )
    return figure, _record(subject, "Patches that excite units", caption)


def _attention(subject: TrainedModel, config: VisualizationConfig) -> Drawn:
    pictures = subject.pictures("val", chosen(subject.split("val"), config.images, num_images=NUM_ATTENDED))
    name = subject.config.model.name
    attention = attention_maps(subject.network, subject.inputs(pictures.pixels), name=name)
    num_prefix = int(subject.network.num_prefix_tokens)  # type: ignore[arg-type]
    names = label_names(subject.classes)
    figure = attention_figure(pictures, attention, num_prefix=num_prefix, names=names, title=f"Attention of {name}")
    reader = "the class token takes" if num_prefix else "the patches take on average"
    caption = (
        f"How much {reader} from each patch: rolled out over all layers (Abnar and Zuidema 2020), and in"
        f" the first heads of the last of {len(attention)} layers, each on its own scale, yellow the most."
    )
    return figure, _record(subject, "Attention", caption)


def _layer_with_maps(subject: TrainedModel, config: VisualizationConfig) -> str:
    calls = trace(subject.network, torch.zeros(1, 3, subject.config.image_size, subject.config.image_size))
    if config.layer is None:
        return last_maps(calls).name
    with_maps = [call.name for call in calls if len(call.output) == 4]
    if config.layer not in with_maps:
        raise UserError(f"layer={config.layer}: gives no maps; those that do are {', '.join(with_maps)}")
    return config.layer


def _record(subject: TrainedModel, title: str, caption: str) -> Record:
    return Record(title, caption, subject.config.model.name, subject.weights_sha256)
