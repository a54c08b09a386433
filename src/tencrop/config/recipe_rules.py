"""Validation rules for the recipe: augmentation, optimizer, schedule, training.

Rules about a single scalar are tables in rules.py; here are the rules about lists and about several keys together.
"""

from __future__ import annotations

from itertools import pairwise

from tencrop.config.schema import Augmentation, Config, Optimizer, Schedule, Training, UserError

MAX_SIDE = 65_500  # pixels: libjpeg's limit, which also keeps sizes and aspect ratios far from the limits of int32
MAX_MAGNITUDE = {
    "torchvision": 30,
    "timm": 10,
}  # end of the scale of RandAugment's magnitude


def check_recipe(config: Config) -> None:
    """Raise UserError for the first rule that the recipe breaks."""
    _check_augmentation(config.augmentation)
    _check_optimizer(config.optimizer)
    _check_schedule(config.schedule, config.training)
    _check_training(config)


def _check_augmentation(augmentation: Augmentation) -> None:
    for key, pair in (("area", augmentation.area), ("aspect", augmentation.aspect), ("side", augmentation.side)):
        if pair is not None and not (len(pair) == 2 and 0 < pair[0] <= pair[1]):
            raise UserError(f"augmentation.{key}={pair}: must be [low, high] with 0 < low <= high")
        if pair is not None and pair[1] > MAX_SIDE:
            raise UserError(f"augmentation.{key}={pair}: must be at most {MAX_SIDE:,}")
    if augmentation.area is not None and augmentation.area[1] > 1:
        raise UserError(f"augmentation.area={augmentation.area}: a crop cannot cover more than 1 of the image")
    if augmentation.side is not None and augmentation.side[0] < augmentation.size:
        raise UserError(
            f"augmentation.side={augmentation.side}: a crop of {augmentation.size} pixels does not fit"
            f" into a shorter side of {augmentation.side[0]}; lower image_size or raise augmentation.side"
        )
    jitter, mixing, randaugment = augmentation.jitter, augmentation.mixing, augmentation.randaugment
    most = MAX_MAGNITUDE[randaugment.source]
    if randaugment.magnitude > most:
        raise UserError(
            f"augmentation.randaugment.magnitude={randaugment.magnitude}: must be at most {most}, the scale of"
            f" {randaugment.source}"
        )
    for key, pair in (("area", augmentation.erasing.area), ("aspect", augmentation.erasing.aspect)):
        if not (len(pair) == 2 and 0 < pair[0] <= pair[1] < (MAX_SIDE if key == "aspect" else 1)):
            least = "0 < low <= high" + (" < 1" if key == "area" else "")
            raise UserError(f"augmentation.erasing.{key}={pair}: must be [low, high] with {least}")
    if not 0 <= jitter.hue <= 0.5:
        raise UserError(f"augmentation.jitter.hue={jitter.hue}: must be in [0, 0.5]; 0.5 is half the color circle")
    if jitter.hue > 0 and jitter.source == "torch":
        raise UserError(
            f"augmentation.jitter.hue={jitter.hue}: fb.resnet.torch has no hue;"
            " set augmentation.jitter.source=torchvision, or hue to 0"
        )
    # mix_group has no default: the papers mix the samples of one device with one lambda, so the original result depends
    # on a number of devices that ours must not depend on.
    is_mixed = mixing.mixup_alpha > 0 or mixing.cutmix_alpha > 0
    if is_mixed and mixing.mix_group is None:
        raise UserError(
            "augmentation.mixing.mix_group=null: mixup_alpha or cutmix_alpha is above 0 and needs it; give"
            " the number of samples that share one lambda (the batch of one device in most papers)"
        )
    if not is_mixed and mixing.mix_group is not None:
        raise UserError(
            f"augmentation.mixing.mix_group={mixing.mix_group}: nothing is mixed;"
            " raise mixup_alpha or cutmix_alpha above 0, or set augmentation.mixing.mix_group=null"
        )
    if is_mixed and mixing.mix_group == 1:
        raise UserError("augmentation.mixing.mix_group=1: a single sample has no partner; set it to 2 or more")


def _check_optimizer(optimizer: Optimizer) -> None:
    """Reject values with which the optimizers cannot converge; torch checks few of them, and only in the first step."""
    betas = optimizer.betas
    if betas is not None and not (len(betas) == 2 and all(0 <= beta < 1 for beta in betas)):
        raise UserError(f"optimizer.betas={betas}: must be two numbers in [0, 1); [0.9,0.999] is usual")
    if optimizer.momentum is not None and optimizer.momentum >= 1:
        raise UserError(f"optimizer.momentum={optimizer.momentum}: must be in [0, 1), else steps grow without end")
    if optimizer.eps == 0:
        raise UserError("optimizer.eps=0: must be above 0, else a weight without a gradient becomes NaN; 1e-8 is usual")
    if optimizer.nesterov and not optimizer.momentum:
        raise UserError("optimizer.nesterov=true: needs optimizer.momentum above 0; 0.9 is usual")


def _check_schedule(schedule: Schedule, training: Training) -> None:
    if schedule.warmup_epochs > training.epochs:
        raise UserError(
            f"schedule.warmup_epochs={schedule.warmup_epochs:g}: is longer than the training"
            f" (training.epochs={training.epochs}); lower it"
        )
    milestones = schedule.milestones
    if milestones is not None and not all(one < other for one, other in pairwise([0, *milestones])):
        raise UserError(f"schedule.milestones={milestones}: must be epochs above 0, each later than the one before")
    if schedule.gamma is not None and schedule.gamma > 1:
        raise UserError(f"schedule.gamma={schedule.gamma}: multiplies the learning rate and must be at most 1")
    if schedule.name == "plateau" and training.minival_fraction == 0:
        raise UserError(
            "schedule=plateau: the learning rate follows the error on a minival, so that the test images stay unseen;"
            " set training.minival_fraction=0.02, for example"
        )


def _check_training(config: Config) -> None:
    training = config.training
    if training.precision == "tf32" and config.deterministic:
        raise UserError(
            "training.precision=tf32: TF32 rounding depends on the GPU model, so deterministic=true cannot hold;"
            " set training.precision=fp32 or deterministic=false"
        )
    if training.minival_fraction == 1:
        raise UserError("training.minival_fraction=1.0: leaves nothing to train on; 0.02 is usual")
    if training.ema_decay == 1:
        raise UserError("training.ema_decay=1: the average would stay at the initial weights; 0.9999 is usual")
