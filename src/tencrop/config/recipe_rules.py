"""Validation rules for the recipe: augmentation, optimizer, schedule, training.

These are the rules between keys; what a single key may hold is declared beside it in schema.py.
"""

from __future__ import annotations

from tencrop.config.fields import as_typed
from tencrop.config.schema import (
    MEAN_IMAGE_SIDE,
    MEAN_IMAGES,
    RANDOM_SIZED,
    Augmentation,
    Config,
    Distill,
    Init,
    Optimizer,
    Progressive,
    Schedule,
    Training,
    UserError,
)

MAX_MAGNITUDE = {"torchvision": 30, "timm": 10, "tf": 10}  # end of the scale of RandAugment's magnitude


def check_recipe(config: Config) -> None:
    """Raise UserError for the first rule that the recipe breaks."""
    _check_augmentation(config.augmentation)
    _check_progressive(config.augmentation, config.training)
    _check_mean_image(config)
    _check_optimizer(config.optimizer, config.training)
    _check_budget(config.training)
    _check_schedule(config.schedule, config.training)
    _check_warmup(config.schedule, config.optimizer)
    _check_precision(config)
    _check_unused(config)


def _check_augmentation(augmentation: Augmentation) -> None:
    # The lower end of the range: a window of `size` must fit at the smallest side that is drawn.
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
    # TensorFlow's ops round coordinates to the nearest pixel; another filter would silently be another augmentation.
    if randaugment.source == "tf" and randaugment.filter != "nearest":
        raise UserError(
            f"augmentation.randaugment.filter={randaugment.filter}: TensorFlow's operations take the nearest pixel;"
            " set augmentation.randaugment.filter=nearest"
        )
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
    # Either would train without mixing, under a name and a hash that say the opposite.
    if is_mixed and mixing.mix_group == 1:
        raise UserError("augmentation.mixing.mix_group=1: a single sample has no partner; set it to 2 or more")
    if is_mixed and mixing.prob == 0:
        raise UserError(
            "augmentation.mixing.prob=0: no group is mixed; raise it, or set mixup_alpha and cutmix_alpha to 0 and"
            " mix_group to null"
        )


def _check_progressive(augmentation: Augmentation, training: Training) -> None:
    key, ramp, size = "augmentation.progressive", augmentation.progressive, augmentation.size
    if ramp.start_size is None:
        if ramp != Progressive():
            raise UserError(
                f"{key}.start_size=null: the other keys of {key} need the size of the first epochs; give"
                f" {key}.start_size=PIXELS, or leave them out"
            )
        return
    if augmentation.crop not in (*RANDOM_SIZED, "none"):
        raise UserError(
            f"{key}.start_size={ramp.start_size}: augmentation.crop={augmentation.crop} cuts a window of this many"
            " pixels, so a smaller one would show less of the image; set augmentation.crop=random_resized, or"
            f" {key}.start_size=null"
        )
    if ramp.start_ramp is None or ramp.end_ramp is None or ramp.start_ramp > ramp.end_ramp:
        raise UserError(
            f"{key}.start_ramp={as_typed(ramp.start_ramp)}, {key}.end_ramp={as_typed(ramp.end_ramp)}: give the last"
            f" epoch of {ramp.start_size} pixels and, not before it, the first of augmentation.size={size}"
        )
    if not ramp.start_size < size or ramp.start_size % ramp.multiple or size % ramp.multiple:
        raise UserError(
            f"{key}.start_size={ramp.start_size}: must be below augmentation.size={size}, and both multiples of"
            f" {key}.multiple={ramp.multiple}"
        )
    if training.epochs is not None:
        check_ramp(augmentation, num_epochs=training.epochs, budget=f"training.epochs={training.epochs}")


def check_ramp(augmentation: Augmentation, *, num_epochs: float, budget: str) -> None:
    """Raise UserError if no epoch has the full size of progressive resizing; budget: the key that sets the end."""
    end = augmentation.progressive.end_ramp
    if end is not None and end >= num_epochs:
        raise UserError(
            f"augmentation.progressive.end_ramp={end}: the training ends before an epoch has"
            f" augmentation.size={augmentation.size} pixels ({budget}); lower it"
        )


def _check_mean_image(config: Config) -> None:
    """Raise UserError for training crops from which the mean image cannot be subtracted.

    For mean=image, a crop has a place in it only if it is taken from a square of its size; the center has one size.
    """
    augmentation, side = config.augmentation, MEAN_IMAGE_SIDE
    # Weights from a file are evaluated only, whatever the training crops are; protocol_rules.py checks the test's.
    if config.weights is not None or config.checkpoint is not None:
        return
    start_size = augmentation.progressive.start_size
    if config.normalization.mean == "image_center" and start_size is not None:
        raise UserError(
            f"augmentation.progressive.start_size={start_size}: normalization.mean=image_center subtracts an image of"
            f" augmentation.size={augmentation.size} pixels, which smaller crops do not have; set"
            " normalization.mean=dataset, or augmentation.progressive.start_size=null"
        )
    if config.normalization.mean != "image":
        return
    is_square = augmentation.region == "square" and augmentation.side == [side, side]
    if augmentation.crop != "random" or not is_square or config.short_side != side:
        raise UserError(
            f"normalization.mean=image: the mean image is a square of {side} pixels, and training crops must be taken"
            f" from such a square; set augmentation=random_crop short_side={side}, or normalization.mean=image_center,"
            " which subtracts its center from every crop"
        )


def _check_optimizer(optimizer: Optimizer, training: Training) -> None:
    if optimizer.nesterov and not optimizer.momentum:
        raise UserError("optimizer.nesterov=true: needs optimizer.momentum above 0; 0.9 is usual")
    if optimizer.layers != "timm" and optimizer.layer_decay is None:
        raise UserError(
            f"optimizer.layers={optimizer.layers}: all layers have the same learning rate; set"
            " optimizer.layer_decay=0.7, for example, or optimizer.layers=timm"
        )
    # A limit of 1 or more never acts, because LAMB has the same limit; below 1 it does.
    if optimizer.name == "lamb" and training.clip_grad_norm is not None and training.clip_grad_norm >= 1:
        raise UserError(
            f"training.clip_grad_norm={training.clip_grad_norm:g}: optimizer=lamb clips the gradient's norm to 1"
            " itself; set it to null, or below 1"
        )


def _check_budget(training: Training) -> None:
    if training.epochs is None and training.steps is None:
        raise UserError("training.epochs=null: the training has no end; give training.epochs or training.steps")
    # Neither is preferred: with either choice, the other key would state a budget that was not used.
    if training.epochs is not None and training.steps is not None:
        raise UserError(
            f"training.steps={training.steps}: training.epochs={training.epochs} is a second budget; add"
            " training.epochs=null, or set training.max_steps to stop early with the schedule of all epochs"
        )


def _check_schedule(schedule: Schedule, training: Training) -> None:
    if training.epochs is not None:
        check_length(schedule, num_epochs=training.epochs, budget=f"training.epochs={training.epochs}")
    if schedule.name == "plateau" and training.minival_fraction == 0:
        raise UserError(
            "schedule=plateau: the learning rate follows the error on a minival, so that the test images stay unseen;"
            " set training.minival_fraction=0.02, for example"
        )
    # np.interp would raise on lists of different lengths, but only at the first step of the training.
    if schedule.knots is not None and schedule.factors is not None:
        num_knots, num_factors = len(schedule.knots), len(schedule.factors)
        if num_knots != num_factors or num_knots < 2:
            raise UserError(
                f"schedule.knots={_listed(schedule.knots)}: {num_knots} epochs, and {num_factors} schedule.factors;"
                " give two or more epochs, and a factor for each"
            )
    # Rounding them would train another schedule than the one in the learning hash.
    epochs = {"warmup_epochs": [schedule.warmup_epochs], "milestones": schedule.milestones or []}
    for key, values in epochs.items() if schedule.unit == "epoch" else ():
        for value in values:
            if value % 1:
                raise UserError(
                    f"schedule.{key}: {value:g} is not a whole number of epochs, and schedule.unit=epoch changes lr"
                    " between epochs only; round it, or set schedule.unit=step"
                )
    # The value changes nothing here and yet enters the learning hash: two folders would hold the same run.
    if schedule.unit == "epoch" and schedule.name in ("constant", "plateau") and schedule.warmup_epochs == 0:
        raise UserError(
            f"schedule.unit=epoch: schedule={schedule.name} without warm-up does not change lr within an epoch;"
            " set schedule.unit=step"
        )


def _listed(numbers: list[float]) -> str:
    return f"[{','.join(f'{number:g}' for number in numbers)}]"  # as typed: 2, which is 2.0 here


def check_length(schedule: Schedule, *, num_epochs: float, budget: str) -> None:
    """Raise UserError if the warm-up or the last knot comes after the end; budget: the key that sets the end."""
    if schedule.warmup_epochs > num_epochs:
        raise UserError(
            f"schedule.warmup_epochs={schedule.warmup_epochs:g}: is longer than the training ({budget}); lower it"
        )
    if schedule.knots and schedule.knots[-1] > num_epochs:
        raise UserError(
            f"schedule.knots={_listed(schedule.knots)}: epoch {schedule.knots[-1]:g} comes after the end of the"
            f" training ({budget}); lower it"
        )


def _check_warmup(schedule: Schedule, optimizer: Optimizer) -> None:
    start = schedule.warmup_from
    if schedule.warmup_epochs == 0:
        for key, value in (("warmup_from", start), ("warmup_factor", schedule.warmup_factor)):
            if value is not None:
                raise UserError(f"schedule.{key}={value:g}: schedule.warmup_epochs=0 does not use it; set it to null")
    elif schedule.name in ("piecewise", "onecycle"):
        raise UserError(
            f"schedule.warmup_epochs={schedule.warmup_epochs:g}: schedule={schedule.name} has its own warm-up;"
            " set schedule.warmup_epochs=0"
        )
    # cosine_from tells where the cosine begins relative to the warm-up, so it needs both.
    if schedule.cosine_from == "start" and (schedule.name != "cosine" or schedule.warmup_epochs == 0):
        raise UserError(
            "schedule.cosine_from=start: is for schedule=cosine with a warm-up; set schedule.cosine_from=warmup_end"
        )
    if start is not None and schedule.warmup_factor is not None:
        raise UserError(
            f"schedule.warmup_from={start:g}: schedule.warmup_factor={schedule.warmup_factor:g} is another way to warm"
            " up; set one of the two to null"
        )
    if start is not None and start > optimizer.lr:
        raise UserError(
            f"schedule.warmup_from={start:g}: is above optimizer.lr={optimizer.lr:g}, to which the warm-up rises;"
            " lower it"
        )


def _check_precision(config: Config) -> None:
    if config.training.precision == "tf32" and config.deterministic:
        raise UserError(
            "training.precision=tf32: TF32 rounding depends on the GPU model, so deterministic=true cannot hold;"
            " set training.precision=fp32 or deterministic=false"
        )


def _check_unused(config: Config) -> None:
    """Raise UserError for a value that nothing uses: it would be recorded, and enter the learning hash."""
    model, training = config.model, config.training
    # The other losses would ignore it, and the record of the run would state a threshold.
    if training.bce_threshold is not None and training.loss != "bce":
        raise UserError(
            f"training.bce_threshold={training.bce_threshold}: training.loss={training.loss} does not use it;"
            " set training.loss=bce, or training.bce_threshold=null"
        )
    if training.ema_warmup != "none" and training.ema_decay is None:
        raise UserError(
            f"training.ema_warmup={training.ema_warmup}: no moving average is kept; set training.ema_decay=0.9999, or"
            " training.ema_warmup=none"
        )
    _check_init(training.init)
    _check_distill(training.distill, config)
    if training.precise_bn is not None:
        _check_precise_bn(config, training.precise_bn)
    for key, value in (("bn_momentum", model.bn_momentum), ("bn_eps", model.bn_eps)):
        if value is not None and model.bn_group is None:
            raise UserError(
                f"model.{key}={value}: model.bn_group=null says that {model.name} has no BatchNorm;"
                f" set model.{key}=null, or model.bn_group"
            )


def _check_init(init: Init) -> None:
    is_set = {"only": bool(init.only), "head": init.head != "keep", "resize": init.resize}
    unused = [key for key in is_set if is_set[key]]
    if init.checkpoint is None and unused:
        raise UserError(
            f"training.init.{unused[0]}: without training.init.checkpoint nothing is loaded; give it a run folder or a"
            f" file, or leave training.init.{unused[0]} out"
        )


def _check_distill(distill: Distill, config: Config) -> None:
    if distill.teacher is None:
        unused = [key for key, value in vars(Distill()).items() if vars(distill)[key] != value]
        if unused:
            raise UserError(
                f"training.distill.{unused[0]}: without training.distill.teacher nothing is distilled; give it a run"
                f" folder or a file, or leave training.distill.{unused[0]} out"
            )
    elif config.normalization.mean in MEAN_IMAGES:
        raise UserError(
            f"training.distill.teacher={distill.teacher}: its inputs are made from the student's, from which"
            f" normalization.mean={config.normalization.mean} subtracts a mean at every pixel; set"
            " normalization.mean=dataset"
        )


def _check_precise_bn(config: Config, num_images: int) -> None:
    if config.model.bn_group is None:
        raise UserError(
            f"training.precise_bn={num_images}: model.bn_group=null says that {config.model.name} has no BatchNorm;"
            " set training.precise_bn=null"
        )
    batch = config.training.global_batch
    # The loader yields whole global batches, so the rest of the images would not be used.
    if num_images % batch:
        raise UserError(
            f"training.precise_bn={num_images}: must be a multiple of training.global_batch={batch}, such as"
            f" {max(1, round(num_images / batch)) * batch}"
        )
