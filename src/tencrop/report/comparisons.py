"""Figures that compare experiments, for the top of the page.

Training error against epochs compares several recipes of one network on the same data, as Figure 1 of Krizhevsky et al.
2012 does. Error against multiply-adds compares networks on ImageNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tencrop.evaluation.whole_data import is_on_whole
from tencrop.report.collect import Evaluation, Experiment
from tencrop.report.training_error import draw_training_error, has_training_error


def draw_comparisons(experiments: Sequence[Experiment], evaluations: Sequence[Evaluation], folder: Path) -> list[Path]:
    """Write the figures that there are numbers for into `folder`, as SVG, PNG and record; returns the SVGs."""
    error_figures = [draw_training_error(family, folder, _name(family[0]))[0] for family in families(experiments)]
    return [*error_figures, *_draw_tradeoff(experiments, evaluations, folder)[:1]]


def families(experiments: Sequence[Experiment]) -> list[list[Experiment]]:
    """Groups of two or more experiments that trained one network on the same data and logged its training error."""
    found: dict[tuple[str, str], list[Experiment]] = {}
    for experiment in filter(has_training_error, experiments):
        config = experiment.runs[0].config
        found.setdefault((config["model"]["name"], config["data"]["name"]), []).append(experiment)
    return [family for family in found.values() if len(family) > 1]


def _name(experiment: Experiment) -> str:
    config = experiment.runs[0].config
    # torchvision's models are named torchvision/NAME
    return f"training_error-{config['model']['name'].replace('/', '-')}-{config['data']['name']}"


def _draw_tradeoff(experiments: Sequence[Experiment], evaluations: Sequence[Evaluation], folder: Path) -> list[Path]:
    """Error against multiply-adds; nothing without a claimed or measured ImageNet error of a network in golden.json."""
    runs = [run for experiment in experiments for run in experiment.runs if run.is_complete]
    results = [result for run in runs for result in run.valid_results]
    facts = [result.facts for result in (*results, *(evaluation.result for evaluation in evaluations))]
    printed = [(one.runs[0].config, claim.error_text(1)) for one in experiments for claim in one.claims]
    # Errors on 32-pixel images would be the best of the figure: whole ImageNet only.
    claims = [(config, float(error)) for config, error in printed if error and config["data"]["name"] == "imagenet"]
    if not claims and not any(is_on_whole("imagenet", one) for one in facts):
        return []

    # imported late: these load matplotlib, which a report of runs on other data does not need
    from tencrop.complexity.golden import golden_counts
    from tencrop.visualization.drawing import save_figure
    from tencrop.visualization.tradeoff import measured, point_of, published, tradeoff_figure, tradeoff_record

    counts = golden_counts()
    own = measured(facts, counts)
    claimed = []
    for config, error in claims:
        model, size = config["model"], config["image_size"]
        blur_pool = model.get("blur_pool", False)  # runs of earlier code do not have the key
        point = point_of(model["name"], model["kwargs"], size, error, counts, blur_pool=blur_pool)
        claimed += [] if point is None else [point]
    if not own and not claimed:
        return []
    series = published(counts)
    return save_figure(tradeoff_figure(series, own, claimed), folder, "tradeoff", tradeoff_record(series))
