"""Typed configurations of the commands other than train and evaluate, which are in schema.py."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from tencrop.config.schema import (
    Average,
    Config,
    Count,
    Data,
    Model,
    NonNegative,
    NonNegativeInt,
    Normalization,
    Pixels,
    Positive,
)


@dataclass
class PrepareConfig:
    """Configuration of prepare.py."""

    data: Data
    workers: Literal["auto"] | Count  # number of threads; auto: all granted cores
    verify: bool = False  # compare every byte of a prepared folder with its fingerprints; write nothing
    simulate: bool = False  # pack an ImageFolder tree into archives like those of ILSVRC2012


@dataclass
class ReportConfig:
    """Configuration of report.py."""

    runs: list[str]  # run folders, or folders with results of evaluate.py; empty: runs/ and evaluations/
    output: str  # output folder for the page, the Markdown and the figures
    table: str | None = None  # a file of conf/errors, or all: compare that table with our runs, and write no page
    plan: bool = False  # with table: add up the device-hours of its missing trainings, as train.py plan=true measured
    # Each of these replaces the page:
    compare: list[str] = field(default_factory=list)  # two run folders or score files: McNemar's test, flips, classes
    diff: list[str] = field(default_factory=list)  # two run folders: what differs between them
    scores: list[str] = field(default_factory=list)  # score files, or folders that hold some: their statistics
    labels: str | None = (
        None  # ImageNet-ReaL's real.json: the errors of saved val scores by its label sets, and no page
    )
    k: list[Count] = field(default_factory=lambda: [1, 5])  # top-k errors of compare, scores and the page
    average: Average = "softmax"  # the average over views that compare and scores use
    data_root: str | None = None  # prepared data that names images and classes of score files outside run folders


# all: those that need trained weights
Figure = Literal["all", "architecture", "tradeoff", "receptive_field", "retrieval", "occlusion", "attention", "patches"]


@dataclass
class ExportConfig:
    """Configuration of export.py."""

    checkpoint: str | None
    format: Literal["safetensors", "torch_export", "onnx"]
    ema: bool | None  # null: EMA weights if the checkpoint has them
    output: str | None  # the folder to write; null: exports/NAME-seedK-HASH


@dataclass
class EvaluateConfig(Config):
    """Configuration of evaluate.py."""

    table: str | None = None  # a file of conf/errors, or all: evaluate the finished runs of its rows, and print it
    weights_dir: str | None = None  # with table=calibration: the folder of released weights that are evaluated
    scores: list[str] | None = None  # score files to average, as an ensemble; no network runs


@dataclass
class DoctorConfig(Config):
    """Configuration of doctor.py: that of the training to come, and the form of the output."""

    json: bool = False


@dataclass
class Cluster:
    """A cluster's settings for jobs: a file of conf/cluster. null: the cluster's default, or slurm/train.sbatch's."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | None = None
    cpus_per_task: Count | None = None
    options: list[str] = field(default_factory=list)  # further options of sbatch
    modules: list[str] = field(default_factory=list)  # module load NAME, before Python starts
    environment: dict[str, str] = field(default_factory=dict)
    network: bool = True  # whether compute nodes reach the tracker's server


@dataclass
class SubmitConfig(Config):
    """Configuration of submit.py: that of the training, and where it runs."""

    cluster: Cluster = field(default_factory=Cluster)
    table: str | None = None  # a file of conf/errors: submit the runs that it lacks, and then its evaluation
    dry_run: bool = False


@dataclass
class VisualizationConfig(EvaluateConfig):
    """Configuration of python -m tencrop.visualization: that of evaluate.py, and the figure to draw."""

    figure: Figure = "all"
    images: list[NonNegativeInt] | None = None  # indices in the val split; null: chosen by a fixed hash
    candidates: Count | None = 2000  # training images searched for figure=retrieval, chosen by a fixed hash; null: all
    # for figure=patches and receptive_field; null: the last layer that outputs feature maps
    layer: str | None = None


def plain_config(config: Config) -> Config:
    """The part of a command's configuration that train.py has, too."""
    return Config(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Config)})


def own_keys(schema: type[Config]) -> set[str]:
    """The keys of a command that train.py does not have; a run's configuration does not have them either."""
    return {field.name for field in dataclasses.fields(schema)} - {field.name for field in dataclasses.fields(Config)}


@dataclass
class Printed:
    """A number in a published table, and the count of ours that must equal it to its printed precision.

    If the two differ, `printed_as` and `ours_as` explain why: each is a sum of products that evaluates to one of the
    two numbers, and complexity/published.py checks the arithmetic.
    """

    row: str
    model: str  # a file of conf/model
    value: str  # as printed, without its unit: 133, 6.8, ~4.1, <10, 55×55×96
    quantity: str | None = None  # null: the table's quantity
    layers: str | None = None  # count matching layers only, such as features.inception3a.*; null: all
    kwargs: dict[str, Any] | None = None  # added to those of the model file
    image_size: Pixels | None = None  # null: that of the model file
    unit: str | None = None  # of the value: K | Ki | M | G; null: the table's unit
    step: float | None = None  # the printed precision, in units, if it is coarser than the value's last digit
    because: str | None = None  # why ours differs, or another remark
    printed_as: str | None = None
    ours_as: str | None = None


@dataclass
class PrintedTable:
    """A published table of sizes and costs: a file of conf/sizes."""

    title: str
    source: str  # the paper, and how its numbers reached us
    quantity: str | None  # default for rows without one
    unit: str | None
    rows: list[Printed]
    note: str | None = None


@dataclass
class ComplexityConfig:
    """Configuration of python -m tencrop.complexity."""

    model: Model | None
    sizes: PrintedTable | None
    image_size: Pixels
    short_side: Pixels | None  # set by files of conf/model, like the next; not used here
    normalization: Normalization | None
    num_classes: Count | None  # null: the network's default
    format: Literal["terminal", "markdown", "csv", "json"]
    layers: Literal["main", "all"]  # all adds normalization layers and parameters outside any layer


@dataclass
class Link:
    """A network for all-reduce."""

    gb_per_s: Positive  # bus bandwidth: what each rank, or each node, sends while it receives as much
    latency_us: NonNegative  # of a message


@dataclass
class PlanningConfig:
    """Configuration of python -m tencrop.planning."""

    step_ms: Positive | None  # time of a training step on one GPU, from train.py plan=true; null: asked for
    parameters: Count | None  # of the network, from python -m tencrop.complexity; null: asked for
    images_per_gpu: Count  # of that step
    gpus: list[Count]  # one row of the table each
    gpus_per_node: Count
    node_link: Link  # between the GPUs of a node
    link: Link  # between nodes: what a node sends, over all its network cards
    loader_images_per_s: Positive  # that one core decodes
    image_kb: Positive  # mean size of a stored image
    num_images: Count  # in an epoch
