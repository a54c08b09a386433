"""Typed schema of the configuration of train.py and evaluate.py.

Each field whose type is a dataclass is a Hydra group, or a section of conf/train.yaml. Values are in conf/, rules in
rules.py. A default here makes a key optional in YAML: keys of one choice only (momentum of sgd), keys of evaluate.py,
and keys newer than the first runs, whose config.yaml lacks them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class UserError(ValueError):
    """The user's input is invalid; the message is one sentence with the value and how to fix it (exit code 2)."""


@dataclass
class Splits:
    """Names of the folders in `data.source` that contain the splits ("." is the source itself)."""

    train: str
    val: str


@dataclass
class StoreOptions:
    """How the training split is stored; the evaluation split keeps its original bytes.

    mode: jpeg (original bytes if no resize is needed, otherwise JPEG of `quality`) | raw | proportion (the fraction
    `jpeg_fraction` of the images as JPEG, the others raw, drawn once per sample index; ffcv's compress_probability).
    short_side / max_side: pixels to which the shorter / longer side is reduced, never enlarged; null keeps the size.
    """

    mode: str
    short_side: int | None
    max_side: int | None
    quality: int
    jpeg_fraction: float | None = None  # proportion


@dataclass
class Data:
    name: str  # imagenet | imagefolder | tiny_imagenet | cifar10 | digits | beton
    root: str  # the prepared folder
    source: str | None  # the folder with the user's files or archives
    splits: Splits
    num_classes: int | None  # null: that of the prepared data
    loader: str  # beton (ours) | ffcv (resizes in its own way, whatever the filter) | torch (slow reference)
    store: StoreOptions
    undecodable: str  # stop | skip (skipped files are listed in the manifest)
    check_md5: bool = False  # compare the archives with the published checksums first
    subset: bool = False  # accept fewer images or classes than the data set has


@dataclass
class Model:
    name: str  # a timm name, one of ours, or torchvision/NAME
    kwargs: dict[str, Any]  # passed to the model's constructor
    channels_last: bool
    bn_group: int | None  # samples that share BatchNorm statistics; null only for a model without BatchNorm


@dataclass
class Pca:
    """RGB noise along the principal components (Krizhevsky et al. 2012, section 4.1)."""

    std: float  # of the normal draw, one per image, epoch and component (paper: 0.1); 0 switches it off
    source: str  # dataset | torch | cuda_convnet


@dataclass
class Jitter:
    """Random brightness, contrast, saturation (factors uniform on [1 - value, 1 + value]) and hue; 0 disables each."""

    source: str = "torch"  # torch (fb.resnet.torch: pixels may leave [0, 255]) | torchvision (clipped after each step)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # torchvision: hue rotation uniform on [-value, value]; 1 is the full color circle


@dataclass
class RandAugment:
    """RandAugment: random operations for each image (Cubuk et al. 2020)."""

    source: str = "torchvision"  # torchvision | timm: whose list of operations and strengths
    num_ops: int = 0  # operations applied in sequence; 0 switches it off
    magnitude: float = 9.0  # on a scale to 30 (torchvision) or 10 (timm)
    std: float = 0.0  # standard deviation of the magnitude, normal (timm's mstd)
    prob: float = 1.0  # probability of applying each operation (timm: 0.5)
    filter: str = "nearest"  # nearest | bilinear | bicubic: interpolation of the geometric operations


@dataclass
class Erasing:
    """Random erasing of one rectangle (Zhong et al. 2020)."""

    prob: float = 0.0  # probability per image; 0 switches it off
    area: list[float] = field(default_factory=lambda: [0.02, 1 / 3])  # range of the erased fraction of the image
    aspect: list[float] = field(default_factory=lambda: [0.3, 1 / 0.3])  # range of height / width
    fill: str = "normal"  # normal (noise with variance 1 after normalization) | mean (0 after normalization)


@dataclass
class Mixing:
    """Mixes pairs of images and their labels: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019)."""

    mixup_alpha: float = 0.0  # lambda ~ Beta(alpha, alpha); 0 switches it off
    cutmix_alpha: float = 0.0
    prob: float = 1.0  # probability that a group is mixed
    switch_prob: float = 0.5  # probability of CutMix rather than mixup if both are on
    mix_group: int | None = None  # consecutive samples of the global batch that share a lambda and are mixed together


@dataclass
class Augmentation:
    crop: str  # random_resized (torchvision) | random_sized (fb.resnet.torch) | random | none
    size: int  # pixels: output height and width
    filter: str  # bilinear | bicubic | box | nearest, as in Pillow
    flip: float  # probability of a horizontal flip
    pca: Pca
    area: list[float] | None = None  # random_(re)sized: range of the crop's fraction of the image area
    aspect: list[float] | None = None  # random_(re)sized: range of width / height
    side: list[int] | None = None  # random: range of the rescaled image's shorter side, in pixels
    region: str | None = None  # random: whole | square (the central square of the rescaled image)
    jitter: Jitter = field(default_factory=Jitter)
    randaugment: RandAugment = field(default_factory=RandAugment)
    erasing: Erasing = field(default_factory=Erasing)
    mixing: Mixing = field(default_factory=Mixing)
    repeats: int = 1  # repeated augmentation: consecutive copies of each sample, each with its own draws


@dataclass
class Normalization:
    """Per channel, on pixels of [0, 255]: (pixel - mean) / std."""

    mean: Any  # imagenet | dataset | [r, g, b]
    std: Any  # imagenet | dataset | [r, g, b]


@dataclass
class Optimizer:
    name: str  # sgd | sgd_alexnet | adamw
    lr: float  # at the global batch
    weight_decay: float
    decay: str  # parameters with weight decay: all | weights (tensors with two or more dimensions)
    momentum: float | None = None  # sgd, sgd_alexnet
    nesterov: bool | None = None  # sgd
    betas: list[float] | None = None  # adamw
    eps: float | None = None  # adamw


@dataclass
class Schedule:
    name: str  # step | cosine | plateau | constant
    warmup_epochs: float
    milestones: list[float] | None = None  # step: epochs at which lr is multiplied by gamma
    gamma: float | None = None  # step, plateau
    min_lr: float | None = None  # cosine: lr at the end
    patience: int | None = None  # plateau: evaluations without improvement before lr drops
    max_drops: int | None = None  # plateau: number of drops, after which lr stays constant


@dataclass
class Protocol:
    name: str  # center | five_crop | ten_crop | flip_pair | grid_crop | crops_144 | dense
    side: Any  # pixels of the rescaled shorter side; a list evaluates at each in turn; null keeps the size
    size: int  # pixels: height and width of a crop
    region: str  # whole | square: crops are taken from the whole rescaled image or from its central square
    filter: str  # bilinear | bicubic | box | nearest, as in Pillow
    average: str  # softmax | logits: the scores that are averaged over the views
    # shorter_side (to `side`) | warp (to side x side) | central_fraction (0.875 of both sides, to size x size)
    resize: str = "shorter_side"

    @property
    def sides(self) -> list[int | None]:
        """`side` as a list."""
        return list(self.side) if isinstance(self.side, list) else [self.side]


@dataclass
class Hardware:
    accelerator: str  # auto | cpu | gpu
    devices: int
    nodes: int
    workers: Any  # loader threads per process; auto: the granted cores, shared by the processes of a node
    max_micro_batch: int | None  # largest batch that fits on a device; larger ones use gradient accumulation


@dataclass
class Tracker:
    name: str  # wandb | tensorboard | none
    project: str | None


@dataclass
class Training:
    epochs: int
    max_steps: int | None  # stop after this number of optimizer steps, to try out a recipe
    global_batch: int
    precision: str  # fp32 | tf32 (float32, but matrix products round their factors to 11 significant bits) | bf16
    label_smoothing: float
    clip_grad_norm: float | None
    ema_decay: float | None
    minival_fraction: float  # fraction of the training split held out for model selection
    evaluate_every_epochs: int


@dataclass
class Recipe:
    """Where the values of an experiment come from. Composing fills it in; it affects no result."""

    experiment: str | None = None  # null: no experiment, the plain recipe of conf/train.yaml
    source: str | None = None  # the paper, or the authors' code
    guesses: list[str] = field(default_factory=list)  # keys whose value the source does not state
    differs: list[str] = field(default_factory=list)  # what the source does and our keys cannot say
    replaced: list[str] = field(default_factory=list)  # GROUP=NAME of the user in place of the experiment's choice
    note: str | None = None  # for the line that a run prints first


@dataclass
class Claim:
    """The published result that an experiment reproduces."""

    top1_error: float | None  # percent, as printed or 100 - accuracy
    top5_error: float | None
    data: str  # the data.name on which it was measured
    split: str
    protocol: str
    source: str


@dataclass
class Config:
    """Configuration of train.py and evaluate.py. `run_id.learning_keys` lists the fields that affect training."""

    seed: int
    image_size: int  # pixels: height and width of the network's input
    short_side: int | None  # pixels: shorter side of the rescaled image from which fixed-size crops are taken
    data: Data
    model: Model
    augmentation: Augmentation
    normalization: Normalization
    optimizer: Optimizer
    schedule: Schedule
    training: Training
    protocol: Protocol
    hardware: Hardware
    tracker: Tracker
    claim: Claim | None
    name: str | None  # name of the experiment; null: MODEL-DATA
    runs: str  # parent of all run folders
    deterministic: bool | None  # null: true on CPU
    log_every_steps: int
    checkpoint_every_steps: int | None  # null: at the end of every epoch only
    allow_other_code: bool  # continue a run that was begun by another version of the code
    recipe: Recipe | None = None
    # evaluate.py only
    checkpoint: Any = None  # path, or list of paths (an ensemble)
    weights: str | None = None  # a plain state dict, .safetensors or .pth
    ema: bool | None = None  # null: EMA weights if the checkpoint has them
    save_views: bool = False  # also save the scores of every view
    output: str | None = None  # folder for score files; null: the run folder, or evaluations/
