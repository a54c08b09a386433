"""Violates each rule once, and composes every file of conf/ that train.py reads."""

import pytest

from tencrop.cli.choices import CONF
from tencrop.config import UserError

OTHERS = ("sizes", "errors", "cluster")  # printed tables, which compose no configuration; what submit.py reads
GROUPS = [(path.parent.name, path.stem) for path in sorted(CONF.glob("*/*.yaml")) if path.parent.name not in OTHERS]
NEEDS = {"model/timm": ["model.name=resnet18"], "schedule/plateau": ["training.minival_fraction=0.1"]}


@pytest.mark.parametrize(("group", "option"), GROUPS)
def test_every_option_composes(composed, group, option):
    composed(f"{group}={option}", *NEEDS.get(f"{group}/{option}", []))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["name=.."], r"name=\.\.: cannot name a folder in runs=runs; use at least one letter"),
        ([f"name={'x' * 201}"], "at most 200 characters"),
        (["augmentation=random_crop", "short_side=200"], "does not fit"),
        (["protocol.side=100"], "a crop of 224 pixels does not fit"),
        (["protocol.side=[256,100]"], "protocol.side=100: a crop of 224 pixels does not fit"),
        (["protocol.side=[]"], "names no size"),
        (["protocol=dense", "protocol.region=square"], "dense covers the whole image; set protocol.region=whole"),
        (["protocol=crops_144", "protocol.side=null"], "crops_144 needs rescaled images"),
        (["protocol=crops_144", "protocol.filter=box"], "protocol.filter=box: crops_144 resizes on the device"),
        (["protocol.resize=stretch"], "protocol.resize=stretch: must be one of shorter_side, warp, central_fraction"),
        (["protocol.resize=warp", "protocol.side=null"], "protocol.side=null: protocol.resize=warp stretches"),
        (["protocol.resize=central_fraction"], "protocol.side=256: .* uses no side; set protocol.side=null"),
        (["protocol.resize=warp", "protocol.region=square"], "stretches the whole image; set protocol.region=whole"),
        (["protocol=crops_144", "protocol.resize=warp"], "protocol.resize=warp: crops_144 takes squares along the"),
        (
            ["protocol=ten_crop", "protocol.resize=warp", "protocol.side=[256,224]"],
            "all crops of ten_crop are the same",
        ),
        (
            ["protocol=grid_crop", "protocol.resize=central_fraction", "protocol.side=null"],
            "all crops of grid_crop are",
        ),
        (["schedule=plateau"], "minival"),
        (
            ["schedule.warmup_epochs=91"],
            r"=91: is longer than the training \(training.epochs=90\); lower it",
        ),
        (
            ["training.epochs=1", "schedule=piecewise"],
            r"schedule.knots=\[0,2,1\]: must be a list .* each larger than the one before",
        ),
        (
            ["schedule=piecewise", "schedule.knots=[0,2,91]"],
            r"epoch 91 comes after the end of the training",
        ),
        (["schedule=piecewise", "schedule.knots=[0,2]"], r"=\[0,2\]: 2 epochs, and 3 schedule.factors; give"),
        (["schedule=piecewise", "schedule.knots=[0]", "schedule.factors=[1]"], "give two or more epochs"),
        (
            ["schedule=piecewise", "schedule.warmup_epochs=1"],
            "piecewise has its own warm-up; set schedule.warmup_epochs=0",
        ),
        (["schedule=onecycle", "schedule.warmup_epochs=1"], "onecycle has its own warm-up"),
        (["schedule.warmup_from=0"], "warmup_from=0: schedule.warmup_epochs=0 does not use it; set it to null"),
        (["schedule.warmup_factor=0.1"], "warmup_factor=0.1: schedule.warmup_epochs=0 does not use it"),
        (["schedule=cosine", "schedule.warmup_from=0", "schedule.warmup_factor=0"], "set one of the two to null"),
        (["schedule=cosine", "schedule.warmup_from=0.2"], "warmup_from=0.2: is above optimizer.lr=0.1"),
        (
            ["schedule=cosine", "schedule.warmup_epochs=0", "schedule.cosine_from=start"],
            "cosine_from=start: is for schedule=cosine with a warm-up",
        ),
        (["+schedule.cosine_from=start", "schedule.warmup_epochs=5"], "cosine_from=start: is for schedule=cosine"),
        (
            ["schedule=constant", "schedule.unit=epoch"],
            "schedule=constant without warm-up does not change lr within an",
        ),
        (
            ["schedule=cosine", "schedule.unit=epoch", "schedule.warmup_epochs=0.5"],
            "schedule.warmup_epochs: 0.5 is not a whole number of epochs",
        ),
        (
            ["schedule.unit=epoch", "schedule.milestones=[30,60.5]"],
            "schedule.milestones: 60.5 is not a whole number of epochs",
        ),
        (["schedule=poly", "schedule.power=0"], "schedule.power=0: must be above 0"),
        (["schedule=step", "+schedule.power=1"], "schedule.power=1.0: schedule.name=step does not use it"),
        (["training.steps=100"], "training.steps=100: training.epochs=90 is a second budget; add training.epochs=null"),
        (
            ["training.epochs=null"],
            "training.epochs=null: the training has no end; give training.epochs or training.st",
        ),
        (
            ["optimizer=lamb", "training.clip_grad_norm=1"],
            "clip_grad_norm=1: optimizer=lamb clips the gradient's norm to",
        ),
        (["optimizer=rmsprop_tf", "optimizer.alpha=1"], "optimizer.alpha=1: must be in"),
        (["optimizer=lamb", "optimizer.betas=[0.9]"], "optimizer.betas=.*must be a list"),
        (["training.precision=tf32", "deterministic=true"], "TF32 rounding depends on the GPU model"),
        (["model.name=resnet51"], "there is no such model; did you mean resnet51q or resnet50"),
        (["tracker.name=csv"], "the CSV tracker was removed; set tracker=none"),
        (["short_side=???"], "^short_side: needs a value; give short_side="),
        (["runs="], "is empty; leave it out, or give runs=DIR"),
        (["+checkpoint=a", "+weights=b"], "give one of the two"),
        (["optimizer.momentum=0"], "nesterov=true: needs optimizer.momentum"),
        (["training.bce_threshold=0.2"], "training.loss=cross_entropy does not use it; set training.loss=bce"),
        (["training.loss=bce", "training.bce_threshold=1"], r"must be in \[0, 1\); no target is above 1"),
        (["training.ema_warmup=tf"], "no moving average is kept; set training.ema_decay=0.9999"),
        (["training.init.head=new"], "without training.init.checkpoint nothing is loaded"),
        (["training.init.resize=true"], "training.init.resize: without training.init.checkpoint"),
        (["training.init.only=[a]"], "training.init.only: without training.init.checkpoint"),
        (
            ["training.distill.alpha=0.3"],
            "training.distill.alpha: without training.distill.teacher nothing is distilled",
        ),
        (["training.distill.model=resnet18"], "training.distill.model: without training.distill.teacher"),
        (
            ["training.distill.teacher=a.pth", "training.distill.model=resnet81"],
            "training.distill.model=resnet81: there is no such model; did you mean resnet18",
        ),
        (["training.distill.kind=soft"], "training.distill.kind=soft: must be one of hard"),
        (
            ["model=zfnet", "training.distill.teacher=a"],
            "normalization.mean=image subtracts a mean at every pixel; set",
        ),
        (
            ["normalization.mean=image_center", "training.distill.teacher=a"],
            "normalization.mean=image_center subtracts a mean at every pixel; set",
        ),
        (["training.max_rms=0"], "training.max_rms=0: must be above 0"),
        (["optimizer.layer_decay=1"], "optimizer.layer_decay=1: must be above 0 and below 1; 0.7 is ConvNeXt's"),
        (["optimizer.layers=convnext"], "optimizer.layers=convnext: all layers have the same learning rate; set"),
        (["training.precise_bn=8000"], "must be a multiple of training.global_batch=256, such as 7936"),
        (["model=vgg_a", "training.precise_bn=256"], "vgg_a has no BatchNorm; set training.precise_bn=null"),
        (["model.bn_momentum=0.9997"], "TensorFlow's decay of 0.9997 is 0.0003"),
        (["model=vgg_a", "model.bn_eps=0.001"], "vgg_a has no BatchNorm; set model.bn_eps=null"),
        (["augmentation.jitter.hue=0.1"], "fb.resnet.torch has no hue"),
        (["normalization.mean=image"], "training crops must be taken from such a square; set augmentation=random_crop"),
        (
            ["normalization.mean=image", "augmentation=random_crop", "protocol=ten_crop", "protocol.region=whole"],
            "protocol=ten_crop must take its views from such a square; set protocol.side=256 and protocol.region=sq",
        ),
        (
            ["normalization.mean=image", "augmentation=random_crop", "protocol=dense"],
            "protocol=dense must take its views from such a square; set protocol.side=256 and protocol.resize=warp",
        ),
        (["augmentation.randaugment.magnitude=31"], "must be at most 30, the scale of torchvision"),
        (
            ["augmentation.randaugment.source=tf", "augmentation.randaugment.filter=bicubic"],
            "TensorFlow's operations take the nearest pixel",
        ),
        (
            ["augmentation.randaugment.source=timm", "augmentation.randaugment.magnitude=11"],
            "at most 10",
        ),
        (["augmentation.mixing.mixup_alpha=0.2"], "mixup_alpha or cutmix_alpha is above 0 and needs it; give"),
        (["augmentation.mixing.mix_group=64"], "nothing is mixed"),
        (["augmentation.mixing.cutmix_alpha=1", "augmentation.mixing.mix_group=1"], "a single sample has no partner"),
        (
            [
                "augmentation.mixing.mixup_alpha=1",
                "augmentation.mixing.mix_group=2",
                "augmentation.mixing.prob=0",
            ],
            "augmentation.mixing.prob=0: no group is mixed; raise it",
        ),
        (["short_side=200", "protocol.side=256"], "short_side=200: a crop of image_size=224"),
    ],
)
def test_a_violated_rule_names_the_value_and_the_remedy(composed, overrides, words):
    with pytest.raises(UserError, match=words):
        composed(*overrides)


def test_the_default_is_the_90_epoch_recipe(composed):
    config = composed("model=resnet50")
    assert (config.training.epochs, config.training.global_batch, config.schedule.milestones) == (90, 256, [30, 60])
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.optimizer.nesterov) == (0.1, 1e-4, True)


RAMP = ["augmentation.progressive.start_size=128", "augmentation.progressive.start_ramp=2"]
RAMP += ["augmentation.progressive.end_ramp=5"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["augmentation.progressive.end_ramp=5"], "start_size=null: the other keys of augmentation.progressive need"),
        (["augmentation.progressive.multiple=16"], "give augmentation.progressive.start_size=PIXELS, or leave them"),
        ([RAMP[0]], "start_ramp=null, augmentation.progressive.end_ramp=null: give the last epoch of 128 pixels"),
        (RAMP[:2], "end_ramp=null: give the last"),
        ([*RAMP, "augmentation.progressive.start_ramp=6"], "not before it, the first of augmentation.size=224"),
        ([*RAMP, "augmentation.progressive.start_size=224"], "must be below augmentation.size=224, and both"),
        ([*RAMP, "augmentation.progressive.start_size=100"], r"=100: must be .* multiples of .*multiple=32"),
        ([*RAMP, "augmentation.size=200"], "must be below augmentation.size=200, and both multiples of"),
        ([*RAMP, "normalization.mean=image_center"], "=128: normalization.mean=image_center .* augmentation.size=224"),
        ([*RAMP, "augmentation=random_crop"], "augmentation.crop=random cuts a window of this many pixels"),
        ([*RAMP, "augmentation.progressive.end_ramp=90"], r"before an epoch has augmentation.size=224 .*epochs=90\)"),
        ([*RAMP, "augmentation.progressive.end_ramp=0"], "end_ramp=0: must be above 0"),
        (["model.blur_pool=3"], "model.blur_pool=3: must be true or false"),
    ],
)
def test_progressive_resizing_and_blurring_are_refused_where_they_cannot_be(composed, overrides, words):
    with pytest.raises(UserError, match=words):
        composed(*overrides)


def test_progressive_resizing_of_a_whole_image(composed):
    ramp = composed(*RAMP, "augmentation=none").augmentation.progressive
    assert (ramp.start_size, ramp.start_ramp, ramp.end_ramp, ramp.multiple) == (128, 2, 5, 32)
