"""The configurations of the verbs beside train.py and evaluate.py (schema.py has theirs), as types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tencrop.config.schema import Claim, Config, Data, Model, Normalization


@dataclass
class PrepareConfig:
    """All that prepare.py knows."""

    data: Data
    workers: Any  # auto: the cores granted
    verify: bool = False  # compare a prepared folder with its fingerprints, in full; write nothing
    simulate: bool = False  # make archives like ILSVRC2012's of an ImageFolder tree


@dataclass
class ReportConfig:
    """All that report.py knows."""

    runs: list[str]  # folders of runs, or of results of evaluate.py; empty: runs/ and evaluations/
    output: str  # folder of the page, the Markdown and the figures
    table: str | None = None  # a file of conf/errors, or all: that table beside our runs instead of the page


@dataclass
class VisualizationConfig(Config):
    """All that python -m tencrop.visualization knows: what evaluate.py does, and which figure of it."""

    figure: str = "all"  # all (of trained weights) | architecture | tradeoff | receptive_field | retrieval | ...
    images: list[int] | None = None  # of the val split, by index; null: chosen by a fixed hash
    candidates: int | None = 2000  # training images that retrieval searches, chosen by a fixed hash; null: all
    layer: str | None = None  # whose units the patches are of; null: the last that gives maps


@dataclass
class Printed:
    """A number of a published table, and which of ours is to equal it to its printed precision.

    Where it cannot, the arithmetic says why: `printed_as` and `ours_as` are sums of products that give the two
    numbers, checked by machine (complexity/published.py).
    """

    row: str
    model: str  # a file of conf/model
    value: str  # as printed, without its unit: 133, 6.8, ~4.1, <10, 55×55×96
    quantity: str | None = None  # null: the table's
    layers: str | None = None  # only the layers that match, such as features.inception3a.*; null: all
    kwargs: dict[str, Any] | None = None  # beside the model file's
    image_size: int | None = None  # null: the model file's
    unit: str | None = None  # of the value: K | Ki | M | G; null: the table's
    step: float | None = None  # the printed precision, in units, where it is less than the value's last digit
    because: str | None = None  # why ours differs, or what else there is to say
    printed_as: str | None = None
    ours_as: str | None = None


@dataclass
class PrintedTable:
    """A published table of sizes and costs: a file of conf/sizes."""

    title: str
    source: str  # the paper's, and how we know it
    quantity: str | None  # of rows that name none
    unit: str | None
    rows: list[Printed]
    note: str | None = None


@dataclass
class ComplexityConfig:
    """All that python -m tencrop.complexity knows."""

    model: Model | None
    sizes: PrintedTable | None
    image_size: int  # pixels
    short_side: int | None  # files of conf/model set it and the next two; none is read here
    normalization: Normalization | None
    claim: Claim | None
    num_classes: int | None  # null: as many as the network has by itself
    format: str  # terminal | markdown | csv | json
    layers: str  # main | all: normalization and what belongs to no layer, too
