"""Typed schema of the configuration of train.py and evaluate.py: each key with its type, choices and range.

Each field whose type is a dataclass is a Hydra group, or a section of conf/train.yaml. Values are in conf/. build.py
checks the types and constraints declared here; rules.py and recipe_rules.py have the rules between keys. A default here
makes a key optional in YAML: keys of one choice only (momentum of sgd), keys of evaluate.py, and keys newer than the
first runs, whose config.yaml lacks them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from tencrop.config.constraints import Increasing, Interval, Length, LowHigh, UsedIf

BN_MOMENTUM_HINT = "it is the share of the newest step, so TensorFlow's decay of 0.9997 is 0.0003"
MEAN_IMAGE_SIDE = 256  # pixels: height and width of the mean image of prepared data
MEAN_IMAGES = ("image", "image_center")  # values of normalization.mean that subtract it, or its center
MAX_SIDE = 65_500  # pixels: libjpeg's limit, which also keeps sizes and aspect ratios far from the limits of int32

Count = Annotated[int, Interval(gt=0)]
NonNegativeInt = Annotated[int, Interval(ge=0)]
Pixels = Annotated[int, Interval(gt=0, le=MAX_SIDE)]
Positive = Annotated[float, Interval(gt=0)]
NonNegative = Annotated[float, Interval(ge=0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
Momentum = Annotated[float, Interval(ge=0, lt=1, hint="with 1, steps grow without end; 0.9 is usual")]
Epsilon = Annotated[float, Interval(gt=0, hint="with 0, weights without gradient become NaN; 1e-8 is usual")]
Decay = Annotated[float, Interval(gt=0, le=1)]
AreaRange = Annotated[list[float], LowHigh(gt=0, le=1)]  # fractions of the image's area
# width / height, or its inverse; the bounds keep a box of any image within int64
AspectRange = Annotated[list[float], LowHigh(ge=0.001, le=1000)]
SideRange = Annotated[list[int], LowHigh(gt=0, le=MAX_SIDE)]  # pixels
Betas = Annotated[list[Annotated[float, Interval(ge=0, lt=1)]], Length(2, hint="[0.9,0.999] is usual")]
Milestones = Annotated[list[Positive], Increasing()]  # epochs
Divisor = Annotated[float, Interval(ge=1)]
# Whole numbers stay such: converted to 124.0, the 124 of an older configuration would change its learning hash.
PixelMean = Annotated[list[Annotated[int | float, Interval(ge=0, le=255)]], Length(3, hint="one per channel")]
PixelStd = Annotated[list[Annotated[int | float, Interval(gt=0)]], Length(3, hint="one per channel, on [0, 255]")]

DataName = Literal[
    "imagenet", "imagefolder", "tiny_imagenet", "cifar10", "mnist", "digits", "beton",
    # test sets for networks trained on ImageNet, without training images
    "imagenet_v2", "imagenet_v2_threshold", "imagenet_v2_top_images", "imagenet_a", "imagenet_r", "imagenet_sketch",
]  # fmt: skip
Filter = Literal["bilinear", "bicubic", "box", "nearest"]  # of resizing, as in Pillow
ProtocolName = Literal["center", "five_crop", "ten_crop", "flip_pair", "grid_crop", "crops_144", "dense"]
Average = Literal["softmax", "logits"]
RANDOM_SIZED = ("random_resized", "random_sized", "random_sized_tf")  # crops of a random area and aspect ratio
Region = Literal["whole", "square"]  # crops are taken from the whole rescaled image or from its central square


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

    mode: jpeg (original bytes if no resize is needed, otherwise JPEG of `quality`) | jpeg_indexed (the same, rewritten
    losslessly with restart markers, so that a crop is decoded faster) | raw | proportion (the fraction `jpeg_fraction`
    of the images as JPEG, the others raw, drawn once per sample index; ffcv's compress_probability).
    short_side / max_side: pixels to which the shorter / longer side is reduced, never enlarged; null keeps the size.
    """

    mode: Literal["jpeg", "jpeg_indexed", "raw", "proportion"]
    short_side: Pixels | None
    max_side: Pixels | None
    quality: Annotated[int, Interval(ge=1, le=100, hint="libjpeg's scale")]
    jpeg_fraction: Annotated[Fraction | None, UsedIf("mode", "proportion")] = None


@dataclass
class Data:
    name: DataName
    root: str  # the prepared folder
    source: str | None  # the folder with the user's files or archives
    splits: Splits
    num_classes: Count | None  # null: that of the prepared data
    loader: Literal["beton", "ffcv", "torch"]  # ours | stock ffcv, which ignores `filter` | slow reference
    store: StoreOptions
    undecodable: Literal["stop", "skip"]  # skipped files are listed in the manifest
    check_md5: bool = False  # compare the archives with the published checksums first
    subset: bool = False  # accept fewer images or classes than the data set has
    # A folder on the node's own disk: the prepared data are copied there once and read from the copy. May contain
    # variables, '$TMPDIR'.
    stage: str | None = None
    keep_stage: bool = True  # keep the copy for later jobs on the node; false: the last process to use it deletes it
    subset_of_val: str | None = None  # a list of file names, one a line: evaluate these images of the val split only


@dataclass
class Model:
    name: str  # a timm name, one of ours, or torchvision/NAME
    kwargs: dict[str, Any]  # passed to the model's constructor, which takes values of any type
    channels_last: bool
    bn_group: Count | None  # samples that share BatchNorm statistics; null only for a model without BatchNorm
    # BatchNorm's momentum and epsilon in place of the network's own; null keeps those
    bn_momentum: Annotated[float, Interval(gt=0, le=0.5, hint=BN_MOMENTUM_HINT)] | None = None
    bn_eps: Positive | None = None  # added to the variance; TF-slim: 0.001
    blur_pool: bool = False  # a fixed 3 x 3 blur before each strided convolution of 16 or more inputs (ffcv-imagenet)


@dataclass
class Pca:
    """RGB noise along the principal components (Krizhevsky et al. 2012, section 4.1)."""

    std: NonNegative  # of the normal draw, one per image, epoch and component (paper: 0.1); 0 switches it off
    source: Literal["dataset", "torch", "cuda_convnet"]  # of the components and their variances


@dataclass
class Jitter:
    """Random brightness, contrast, saturation (factors uniform on [1 - value, 1 + value]) and hue; 0 disables each."""

    # torch: that of fb.resnet.torch, where pixels may leave [0, 255]; torchvision clips them after each step
    source: Literal["torch", "torchvision"] = "torch"
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    # torchvision: hue rotation uniform on [-value, value]
    hue: Annotated[float, Interval(ge=0, le=0.5, hint="0.5 is half the color circle")] = 0.0


@dataclass
class RandAugment:
    """RandAugment: random operations for each image (Cubuk et al. 2020)."""

    # whose list of operations and strengths; tf: TensorFlow's (EfficientNet, big_vision), whose pixels differ too
    source: Literal["torchvision", "timm", "tf"] = "torchvision"
    num_ops: Annotated[int, Interval(ge=0, le=100)] = 0  # operations applied in sequence; 0 switches it off
    magnitude: NonNegative = 9.0  # on a scale to 30 (torchvision) or 10 (timm, tf)
    std: NonNegative = 0.0  # standard deviation of the magnitude, normal (timm's mstd)
    prob: Fraction = 1.0  # probability of applying each operation (timm: 0.5)
    filter: Literal["nearest", "bilinear", "bicubic"] = "nearest"  # interpolation of the geometric operations


@dataclass
class Erasing:
    """Random erasing of one rectangle (Zhong et al. 2020)."""

    prob: Fraction = 0.0  # probability per image; 0 switches it off
    # range of the erased fraction of the image
    area: Annotated[list[float], LowHigh(gt=0, lt=1)] = field(default_factory=lambda: [0.02, 1 / 3])
    aspect: AspectRange = field(default_factory=lambda: [0.3, 1 / 0.3])  # range of height / width
    fill: Literal["normal", "mean"] = "normal"  # after normalization: noise with variance 1 | 0


@dataclass
class Mixing:
    """Mixes pairs of images and their labels: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019)."""

    mixup_alpha: NonNegative = 0.0  # lambda ~ Beta(alpha, alpha); 0 switches it off
    cutmix_alpha: NonNegative = 0.0
    prob: Fraction = 1.0  # probability that a group is mixed
    switch_prob: Fraction = 0.5  # probability of CutMix rather than mixup if both are on
    mix_group: Count | None = None  # consecutive samples of the global batch that share a lambda and are mixed together


@dataclass
class Progressive:
    """Progressive resizing: training crops grow from `start_size` to augmentation.size. ffcv-imagenet's names."""

    start_size: Pixels | None = None  # of the first epochs; null: all crops have augmentation.size
    start_ramp: NonNegativeInt | None = None  # last epoch of start_size, counted from 0
    end_ramp: Count | None = None  # first epoch of augmentation.size
    multiple: Pixels = 32  # every size is a multiple of it; between, the nearest one


@dataclass
class Augmentation:
    # torchvision's | fb.resnet.torch's | TensorFlow's | fixed size | whole image
    crop: Literal["random_resized", "random_sized", "random_sized_tf", "random", "none"]
    size: Pixels  # output height and width; with progressive resizing, in the last epochs
    filter: Filter
    flip: Fraction  # probability of a horizontal flip
    pca: Pca
    area: Annotated[AreaRange | None, UsedIf("crop", *RANDOM_SIZED)] = None  # of the crop
    aspect: Annotated[AspectRange | None, UsedIf("crop", *RANDOM_SIZED)] = None  # width / height
    # a smaller fraction of the image is drawn again (EfficientNet: 0.1; ViT: 0)
    min_object_covered: Annotated[Fraction | None, UsedIf("crop", "random_sized_tf")] = None
    side: Annotated[SideRange | None, UsedIf("crop", "random")] = None  # shorter side of the rescaled image
    region: Annotated[Region | None, UsedIf("crop", "random")] = None
    jitter: Jitter = field(default_factory=Jitter)
    randaugment: RandAugment = field(default_factory=RandAugment)
    erasing: Erasing = field(default_factory=Erasing)
    mixing: Mixing = field(default_factory=Mixing)
    progressive: Progressive = field(default_factory=Progressive)
    # repeated augmentation: consecutive copies of each sample, each with its own draws
    repeats: Annotated[int, Interval(gt=0, le=1000)] = 1


@dataclass
class Normalization:
    """On pixels of [0, 255]: (pixel - mean) / std. Per channel, except for the mean image."""

    # dataset: the mean color of the training images | image: their mean at every pixel, at the place of the crop
    # (AlexNet, ZFNet) | image_center: the center of that mean image, wherever the crop lies (ResNet)
    mean: Literal["imagenet", "dataset", "image", "image_center"] | PixelMean
    std: Literal["imagenet", "dataset"] | PixelStd


@dataclass
class Optimizer:
    name: Literal["sgd", "sgd_alexnet", "adamw", "rmsprop_tf", "lamb"]
    lr: Positive  # at the global batch
    weight_decay: NonNegative
    # Parameters with weight decay. weights: tensors with two or more dimensions. timm: of these, not those that the
    # network lists in no_weight_decay(), such as pos_embed. not_norm: all but those of normalization layers.
    # not_depthwise: weights, but not those of depthwise convolutions.
    decay: Literal["all", "weights", "timm", "not_norm", "not_depthwise"]
    momentum: Annotated[Momentum | None, UsedIf("name", "sgd", "sgd_alexnet", "rmsprop_tf")] = None
    nesterov: Annotated[bool | None, UsedIf("name", "sgd")] = None
    betas: Annotated[Betas | None, UsedIf("name", "adamw", "lamb")] = None
    eps: Annotated[Epsilon | None, UsedIf("name", "adamw", "rmsprop_tf", "lamb")] = None
    alpha: Annotated[Momentum | None, UsedIf("name", "rmsprop_tf")] = None  # decay of the mean square of the gradient
    # factor of lr from one layer to the layer before it; null: all layers have the same lr
    layer_decay: Annotated[float, Interval(gt=0, lt=1, hint="0.7 is ConvNeXt's in fine-tuning")] | None = None
    # What counts as a layer. timm: its group_matcher, mostly one block. convnext: up to three blocks (ConvNeXt's code).
    layers: Literal["timm", "convnext"] = "timm"


@dataclass
class Schedule:
    name: Literal["step", "cosine", "plateau", "constant", "poly", "exponential", "piecewise", "onecycle"]
    warmup_epochs: NonNegative
    milestones: Annotated[Milestones | None, UsedIf("name", "step")] = None  # epochs at which gamma multiplies lr
    gamma: Annotated[Decay | None, UsedIf("name", "step", "plateau", "exponential")] = None  # factor of lr
    min_lr: Annotated[NonNegative | None, UsedIf("name", "cosine")] = None  # lr at the end
    patience: Annotated[Count | None, UsedIf("name", "plateau")] = None  # evaluations without improvement before a drop
    # number of drops, after which lr stays constant
    max_drops: Annotated[NonNegativeInt | None, UsedIf("name", "plateau")] = None
    unit: Literal["step", "epoch"] = "step"  # epoch: lr is constant within an epoch
    # Learning rate of the first step, from which lr rises in a line to optimizer.lr, in place of the schedule (timm,
    # TensorFlow). null: the schedule is multiplied by 1/n, 2/n, ... n/n over n warm-up steps.
    warmup_from: NonNegative | None = None
    warmup_factor: Fraction | None = None  # the schedule is multiplied by a line from this factor to 1 (pycls)
    cosine_from: Literal["warmup_end", "start"] = "warmup_end"  # where the cosine has its maximum
    power: Annotated[Positive | None, UsedIf("name", "poly")] = None
    # gamma multiplies lr each time as many epochs have passed
    decay_epochs: Annotated[
        Annotated[float, Interval(ge=0.001, hint="2.4 is EfficientNet's")] | None, UsedIf("name", "exponential")
    ] = None
    # piecewise: lr is optimizer.lr times the factor at each knot (in epochs), with straight lines between them
    knots: Annotated[Annotated[list[NonNegative], Increasing()] | None, UsedIf("name", "piecewise")] = None
    factors: Annotated[list[Fraction] | None, UsedIf("name", "piecewise")] = None
    # fraction of the training in which lr rises
    pct_start: Annotated[Annotated[float, Interval(gt=0, lt=1)] | None, UsedIf("name", "onecycle")] = None
    div_factor: Annotated[Divisor | None, UsedIf("name", "onecycle")] = None  # optimizer.lr / lr of the first step
    # lr of the first step / lr of the last step
    final_div_factor: Annotated[Divisor | None, UsedIf("name", "onecycle")] = None


@dataclass
class Protocol:
    name: ProtocolName
    side: Pixels | list[Pixels] | None  # of the rescaled shorter side; a list: each in turn; null keeps the size
    size: Pixels  # height and width of a crop
    region: Region
    filter: Filter
    average: Average  # the scores that are averaged over the views
    # shorter_side: to `side`; warp: to side x side; central_fraction: 0.875 of both sides, to size x size
    resize: Literal["shorter_side", "warp", "central_fraction"] = "shorter_side"

    @property
    def sides(self) -> list[int | None]:
        """`side` as a list."""
        return [*self.side] if isinstance(self.side, list) else [self.side]


@dataclass
class Hardware:
    accelerator: Literal["auto", "cpu", "gpu"]
    devices: Annotated[int, Interval(gt=0, le=10_000)]  # per node
    nodes: Annotated[int, Interval(gt=0, le=10_000)]
    # loader threads per process; auto: the granted cores, shared by the processes of a node
    workers: Literal["auto"] | Count
    max_micro_batch: Count | None  # largest batch that fits on a device; larger ones use gradient accumulation


@dataclass
class Tracker:
    name: Literal["wandb", "tensorboard", "mlflow", "none"]
    project: str | None


@dataclass
class Init:
    """Weights to start from, instead of those that the seed draws."""

    checkpoint: str | None = None  # a run folder, a checkpoint or a file of weights; null: the seed draws all weights
    only: list[str] = field(default_factory=list)  # patterns of the names to load, features.*; empty: all
    # last layer: the source's | the seed's | the seed's times 0.001 (ConvNeXt)
    head: Literal["keep", "new", "scaled"] = "keep"
    resize: bool = False  # resample position embeddings and Swin's bias tables to the network's size


@dataclass
class Distill:
    """Distillation of a trained network, the teacher, by a network with a distillation token (Touvron et al. 2021)."""

    teacher: str | None = None  # a run folder, a checkpoint or a file of weights; null: no distillation
    model: str | None = None  # the teacher's network, where `teacher` is not in a run folder
    # hard: the second head learns the class to which the teacher gives the highest score
    kind: Literal["hard"] = "hard"
    alpha: Fraction = 0.5  # weight of the loss against the teacher; 1 - alpha is that of the labels


@dataclass
class Training:
    epochs: Annotated[int, Interval(gt=0, le=1_000_000)] | None  # null: `steps` is the budget
    max_steps: Count | None  # stop after this number of optimizer steps, to try out a recipe
    global_batch: Annotated[int, Interval(gt=0, le=1 << 30)]
    # tf32: float32, but matrix products round their factors to 11 significant bits
    precision: Literal["fp32", "tf32", "bf16"]
    label_smoothing: Fraction
    clip_grad_norm: Positive | None
    ema_decay: Annotated[float, Interval(ge=0, lt=1, hint="1 keeps the initial weights; 0.9999 is usual")] | None
    # fraction of the training split held out for model selection
    minival_fraction: Annotated[float, Interval(ge=0, lt=1, hint="1 leaves nothing to train on; 0.02 is usual")]
    evaluate_every_epochs: Count
    # bce: a binary cross-entropy per class, averaged over samples and classes (timm; Wightman et al. 2021)
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    # bce: targets above it become 1 and the others 0, after smoothing and mixing; null keeps them
    bce_threshold: Annotated[float, Interval(ge=0, lt=1, hint="no target is above 1; 0.2 is usual")] | None = None
    # tf: the decay of step n is at most (1 + n) / (10 + n), as in TensorFlow
    ema_warmup: Literal["none", "tf"] = "none"
    init: Init = field(default_factory=Init)
    # patterns of names, features.*: weights that do not learn; their BatchNorm layers stay in eval mode
    freeze: list[str] = field(default_factory=list)
    # training images over which the final BatchNorm statistics are exact means; null: moving averages, as torch's
    precise_bn: Count | None = None
    # A convolution kernel whose root mean square is above it is scaled down to it after each step (ZFNet: 0.1).
    max_rms: Positive | None = None
    distill: Distill = field(default_factory=Distill)
    # optimizer steps, in place of `epochs`: decides the schedule and the end
    steps: Annotated[int, Interval(gt=0, le=1_000_000_000)] | None = None
    # torch.compile of the network in training steps, and its mode; evaluation is not compiled
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = "none"


@dataclass
class Recipe:
    """Where the values of an experiment come from. Composing fills it in; it affects no result."""

    experiment: str | None = None  # null: no experiment, the plain recipe of conf/train.yaml
    source: str | None = None  # the paper, or the authors' code
    guesses: list[str] = field(default_factory=list)  # keys whose value the source does not state
    differs: list[str] = field(default_factory=list)  # where the experiment departs from its source
    replaced: list[str] = field(default_factory=list)  # GROUP=NAME of the user in place of the experiment's choice
    note: str | None = None  # for the line that a run prints first


@dataclass
class Config:
    """Configuration of train.py and evaluate.py. `run_id.learning_keys` lists the fields that affect training."""

    seed: Annotated[int, Interval(ge=0, le=2**63 - 1)]
    image_size: Pixels  # height and width of the network's input
    short_side: Pixels | None  # shorter side of the rescaled image from which fixed-size crops are taken
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
    name: str | None  # name of the experiment; null: MODEL-DATA
    runs: str  # parent of all run folders
    deterministic: bool | None  # null: true on CPU
    log_every_steps: Count
    checkpoint_every_steps: Count | None  # null: at the end of every epoch only
    allow_other_code: bool  # continue a run that was begun by another version of the code
    recipe: Recipe | None = None
    plan: bool = False  # train.py only: measure for about a minute, print what the training would take, train nothing
    # evaluate.py only
    checkpoint: str | list[str] | None = None  # path, or list of paths (an ensemble)
    weights: str | None = None  # a plain state dict, .safetensors or .pth
    weights_by: Literal["name", "order"] = "name"  # how the tensors of `weights` are matched with the network's
    ema: bool | None = None  # null: EMA weights if the checkpoint has them
    save_views: bool = False  # also save the scores of every view
    output: str | None = None  # folder for score files; null: the run folder, or evaluations/
