"""Each rule, broken once; and every file of conf/ composes."""

import pytest

from tencrop.config import UserError
from tencrop.config.verbs import CONF

GROUPS = [(path.parent.name, path.stem) for path in sorted(CONF.glob("*/*.yaml"))]
NEEDS = {"model/timm": ["model.name=resnet18"], "schedule/plateau": ["training.minival_fraction=0.1"]}


@pytest.mark.parametrize(("group", "option"), GROUPS)
def test_every_option_composes(composed, group, option):
    composed(f"{group}={option}", *NEEDS.get(f"{group}/{option}", []))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.loader=fcv"], "data.loader=fcv: must be ffcv"),
        (["augmentation.flip=1.5"], r"must lie in \[0, 1\]"),
        (["augmentation.area=[0.5,0.1]"], "0 < low <= high"),
        (["augmentation.area=[0.5,1.5]"], "more than 1 of the image"),
        (["augmentation=random_crop", "short_side=200"], "does not fit"),
        (["protocol.side=100"], "a crop of 224 pixels does not fit"),
        (["schedule=plateau"], "minival"),
        (["training.minival_fraction=1"], "leaves nothing to train on"),
        (["schedule.milestones=null"], "schedule.milestones: schedule.name=step needs a value"),
        (["seed=-1"], "seed=-1"),
        (["normalization.mean=imagnet"], "normalization.mean=imagnet"),
        (["hardware.workers=none"], "workers=none: must be auto or a number"),
        (["hardware.devices=0"], "must be above 0"),
        (["optimizer.weight_decay=-1"], "must be 0 or above"),
        (["optimizer.momentum=0"], "nesterov=true: needs optimizer.momentum"),
        (["schedule.warmup_epochs=-5"], "must be 0 or above"),
        (["normalization.std=[0,1,1]"], "every number must be above 0"),
        (["normalization.mean=[a,b,c]"], "three numbers"),
        (["short_side=200", "protocol.side=256"], "short_side=200: a crop of image_size=224"),
    ],
)
def test_a_broken_rule_names_the_value_and_the_mend(composed, overrides, words):
    with pytest.raises(UserError, match=words):
        composed(*overrides)


def test_the_default_is_the_90_epoch_recipe(composed):
    config = composed("model=resnet50")
    assert (config.training.epochs, config.training.global_batch, config.schedule.milestones) == (90, 256, [30, 60])
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.optimizer.nesterov) == (0.1, 1e-4, True)
    assert config.claim is not None and (config.claim.top1_error, config.claim.top5_error) == (24.01, 7.02)
