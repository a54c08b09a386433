"""The configuration of train.py and evaluate.py as types; a group's folder in conf/ has the name of its field here.

Values stand in conf/, rules in rules.py. Imported before torch and timm, so that a mistake in
the configuration is answered in under a second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class UserError(ValueError):
    """What a user wrote cannot be done; the message names the value and the mend (exit code 2)."""


@dataclass
class Splits:
    """Folder names of the two splits within `data.source` ("." is the source itself)."""

    train: str
    val: str


@dataclass
class StoreOptions:
    """How the training split is written; the evaluation split keeps its original bytes.

    mode: jpeg (original bytes where no resize is needed, else JPEG of `quality`) | raw | proportion (each image one or
    the other, drawn once from its sample index; `jpeg_fraction` of them JPEG, as ffcv's compress_probability).
    short_side / max_side: pixels the shorter / longer side is reduced to, never enlarged; null keeps the size.
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
    source: str | None  # the folder of the user's files or archives
    splits: Splits
    num_classes: int | None  # null: as many as the prepared data have
    loader: str  # beton (ours) | ffcv (its own pixels: another resize, whatever `filter` says) | torch (the reference)
    store: StoreOptions
    undecodable: str  # stop | skip (skipped files are listed in the manifest)
    check_md5: bool = False  # compare the archives with the published checksums first
    subset: bool = False  # accept fewer images or classes than the data set has


@dataclass
class Model:
    name: str  # a timm name, one of ours, or torchvision/NAME
    kwargs: dict[str, Any]  # passed to the model's constructor
    channels_last: bool
    bn_group: int | None  # samples normalized together; null only for a model without BatchNorm


@dataclass
class Pca:
    """RGB noise along the principal components (Krizhevsky et al. 2012, section 4.1)."""

    std: float  # of the normal draw, one per image, epoch and component; 0 switches it off
    source: str  # dataset | torch | cuda_convnet


@dataclass
class Jitter:
    """Random brightness, contrast, saturation (each a factor uniform on 1 -+ the value) and hue; 0 switches one off."""

    source: str = "torch"  # torch (fb.resnet.torch: pixels may leave [0, 255]) | torchvision (cut off after each)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # torchvision: a turn of the color circle uniform on -+ the value, 0.5 is half of it


@dataclass
class RandAugment:
    """Operations drawn for each image (Cubuk et al. 2020)."""

    source: str = "torchvision"  # torchvision | timm: whose list of operations and of their strengths
    num_ops: int = 0  # one after the other; 0 switches it off
    magnitude: float = 9.0  # torchvision: of 30, timm: of 10
    std: float = 0.0  # of the magnitude, normal (timm's mstd)
    prob: float = 1.0  # of each operation to be carried out (timm: 0.5)
    filter: str = "nearest"  # nearest | bilinear | bicubic: of what moves the image


@dataclass
class Erasing:
    """A rectangle of each image erased (Zhong et al. 2020)."""

    prob: float = 0.0  # 0 switches it off
    area: list[float] = field(default_factory=lambda: [0.02, 1 / 3])  # range of its share of the image
    aspect: list[float] = field(default_factory=lambda: [0.3, 1 / 0.3])  # range of height / width
    fill: str = "normal"  # normal (noise, of variance 1 after normalization) | mean (0 after normalization)


@dataclass
class Mixing:
    """Pairs of images and their labels mixed: mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019)."""

    mixup_alpha: float = 0.0  # lambda is of Beta(alpha, alpha); 0 switches it off
    cutmix_alpha: float = 0.0
    prob: float = 1.0  # of a group to be mixed at all
    switch_prob: float = 0.5  # of cutmix rather than mixup, where both are on
    mix_group: int | None = None  # consecutive samples of the global batch that share one lambda; mix among themselves


@dataclass
class Augmentation:
    crop: str  # random_resized (torchvision's) | random_sized (fb.resnet.torch's) | random | none
    size: int  # pixels: output height and width
    filter: str  # bilinear | bicubic | box | nearest, as in Pillow
    flip: float  # probability of the mirror image
    pca: Pca
    area: list[float] | None = None  # random_(re)sized: range of the crop's share of the image area
    aspect: list[float] | None = None  # random_(re)sized: range of width / height
    side: list[int] | None = None  # random: range of the shorter side that the image is rescaled to
    region: str | None = None  # random: whole | square (the central square of the rescaled image)
    jitter: Jitter = field(default_factory=Jitter)
    randaugment: RandAugment = field(default_factory=RandAugment)
    erasing: Erasing = field(default_factory=Erasing)
    mixing: Mixing = field(default_factory=Mixing)
    repeats: int = 1  # copies of a sample one after the other in the epoch's order, each augmented anew


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
    decay: str  # all | weights (only tensors of two or more dimensions)
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
    max_drops: int | None = None  # plateau: drops, after which lr stays


@dataclass
class Protocol:
    name: str  # center | five_crop | ten_crop | flip_pair | crops_144 | dense
    side: Any  # the shorter side is rescaled to this, or to each of a list in turn; null keeps the size
    size: int  # pixels: the crop's height and width
    region: str  # whole | square: what the corners are corners of
    filter: str  # bilinear | bicubic | box | nearest, as in Pillow
    average: str  # softmax | logits: what is averaged over the views

    @property
    def sides(self) -> list[int | None]:
        """`side` as a list."""
        return list(self.side) if isinstance(self.side, list) else [self.side]


@dataclass
class Hardware:
    accelerator: str  # auto | cpu | gpu
    devices: int
    nodes: int
    workers: Any  # loader threads a process; auto: the cores granted, shared by the processes of a node
    max_micro_batch: int | None  # samples a device can hold; more are accumulated


@dataclass
class Tracker:
    name: str  # wandb | tensorboard | none
    project: str | None


@dataclass
class Training:
    epochs: int
    max_steps: int | None  # stop after so many optimizer steps (to try a recipe)
    global_batch: int
    precision: str  # fp32 (float32) | tf32 (a GPU's products of factors rounded to 11 bits) | bf16
    label_smoothing: float
    clip_grad_norm: float | None
    ema_decay: float | None
    minival_fraction: float  # share of the training split held out for selection
    evaluate_every_epochs: int


@dataclass
class Claim:
    """The published result that an experiment is to reproduce."""

    top1_error: float | None  # percent, as printed or 100 - accuracy
    top5_error: float | None
    data: str  # the data.name it speaks of
    split: str
    protocol: str
    source: str


@dataclass
class Config:
    """All that train.py and evaluate.py know; which keys change what is learned says `learning_keys`."""

    seed: int
    image_size: int  # pixels the network sees
    short_side: int | None  # pixels the shorter side is rescaled to before fixed-size crops
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
    name: str | None  # of the experiment; null: model-data
    runs: str  # folder of all run folders
    deterministic: bool | None  # null: true on CPU
    log_every_steps: int
    checkpoint_every_steps: int | None  # null: at the end of every epoch only
    allow_other_code: bool  # continue a run that another version of the code began
    # evaluate.py only
    checkpoint: Any = None  # path, or list of paths (an ensemble)
    weights: str | None = None  # a plain state dict, .safetensors or .pth
    ema: bool | None = None  # null: EMA weights where the checkpoint has them
    save_views: bool = False  # save the scores of every view too
    output: str | None = None  # folder of score files; null: the run's own, or evaluations/
