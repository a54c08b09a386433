"""The folder of a run depends on the keys that affect training and on nothing else."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from tencrop.cli.choices import CONF
from tencrop.cli.command_line import keys_typed
from tencrop.cli.run_overrides import config_of_run
from tencrop.config import (
    Augmentation,
    UserError,
    check_data,
    check_preparation,
    check_store,
    learning_hash,
    learning_keys,
    run_path,
)
from tencrop.config.loader import CONFIG_FORMAT
from tencrop.config.run_config import config_sha256, read_config

PINNED = json.loads(Path(__file__).with_name("learning_hashes.json").read_text())


@pytest.mark.parametrize("words", PINNED)
def test_learning_hashes_do_not_change(composed, words):
    """A run folder is found again by this hash: a new key may enter it only where it is not at its default."""
    assert learning_hash(composed(*words.split())) == PINNED[words]


def test_every_experiment_is_pinned():
    experiments = {f"experiment={path.stem}" for path in (CONF / "experiment").glob("*.yaml")}
    assert experiments <= PINNED.keys()


@pytest.mark.parametrize(
    "override",
    [
        "hardware=cpu",
        "tracker=none",
        "data.root=/elsewhere",
        "data.loader=torch",
        "seed=7",
        "runs=/tmp/x",
        "protocol=ten_crop",
    ],
)
def test_keys_that_do_not_affect_training_keep_the_hash(composed, override):
    assert learning_hash(composed(override)) == learning_hash(composed())


@pytest.mark.parametrize(
    "override",
    [
        "training.epochs=91",
        "training.precision=fp32",
        "model.bn_group=64",
        "augmentation.flip=0",
        "augmentation.jitter.contrast=0.3",
        "augmentation.randaugment.num_ops=2",
        "augmentation.erasing.prob=0.25",
        "augmentation.repeats=3",
        "data.store.short_side=300",
        "data.loader=ffcv",
        "training.loss=bce",
        "training.freeze=[a]",
        "training.init.checkpoint=a.ckpt",
        "training.precise_bn=256",
        "training.max_rms=0.1",
        "training.compile=default",
        "training.distill.teacher=a.ckpt",
        "optimizer.layer_decay=0.7",
        "model.bn_momentum=0.01",
        "model.bn_eps=0.001",
        "optimizer.decay=timm",
        "schedule.unit=epoch",
        "schedule=poly",
    ],
)
def test_keys_that_affect_training_change_the_hash(composed, override):
    assert learning_hash(composed(override)) != learning_hash(composed())


@pytest.mark.parametrize("store", ["short_side=256", "max_side=500", "mode=jpeg_indexed data.store.short_side=256"])
def test_the_torch_loader_counts_where_the_store_compresses_again(composed, store):
    """beton decodes the second JPEG, torch the original. Raw pixels are those of the resized original for both."""
    words = f"data.store.{store}".split()
    plain, other = learning_keys(composed(*words)), learning_keys(composed(*words, "data.loader=torch"))
    assert other["data"].pop("loader") == "torch" and other == plain
    raw = [*words, "data.store.mode=raw"]
    assert learning_hash(composed(*raw)) == learning_hash(composed(*raw, "data.loader=torch"))


@pytest.mark.parametrize(
    "override",
    ["schedule.warmup_from=0", "schedule.warmup_factor=0.1", "schedule.cosine_from=start", "schedule.unit=epoch"],
)
def test_a_newer_key_counts_only_where_it_is_not_at_its_default(composed, override):
    plain = learning_keys(composed("schedule=cosine"))
    key, _, value = override.removeprefix("schedule.").partition("=")
    assert key not in plain["schedule"]
    changed = learning_keys(composed("schedule=cosine", override))
    assert str(changed["schedule"].pop(key)) in (value, f"{value}.0") and changed == plain


def test_a_budget_in_steps_counts(composed):
    changed = learning_keys(composed("training.epochs=null", "training.steps=7"))["training"]
    assert "steps" not in learning_keys(composed())["training"]
    assert (changed["epochs"], changed["steps"]) == (None, 7)


MIXED = ("augmentation.mixing.cutmix_alpha=1", "augmentation.mixing.mix_group=64")


@pytest.mark.parametrize(
    ("key", "switch"),
    [
        ("augmentation.jitter.source=torchvision", ["augmentation.jitter.hue=0"]),
        ("augmentation.randaugment.prob=0.5", ["augmentation.randaugment.num_ops=2"]),
        ("augmentation.erasing.fill=mean", ["augmentation.erasing.prob=0.25"]),
        ("augmentation.mixing.prob=0.9", MIXED),
    ],
)
def test_settings_count_only_if_their_operation_is_on(composed, key, switch):
    plain = "augmentation=none"
    assert learning_hash(composed(plain, key)) == learning_hash(composed(plain))
    switch = [*switch, "augmentation.jitter.contrast=0.1"]
    assert learning_hash(composed(plain, key, *switch)) != learning_hash(composed(plain, *switch))


@dataclasses.dataclass
class Grayscale:
    prob: float = 0.0


@dataclasses.dataclass
class MoreAugmentation(Augmentation):
    grayscale: Grayscale = dataclasses.field(default_factory=Grayscale)


def test_a_transform_that_is_added_to_the_schema_keeps_the_hash_while_it_is_off(composed):
    config = composed()
    before, values = learning_hash(config), vars(config.augmentation)
    config.augmentation = MoreAugmentation(**values)
    assert learning_hash(config) == before
    config.augmentation = MoreAugmentation(**values, grayscale=Grayscale(0.5))
    assert learning_hash(config) != before


def test_the_folder_names_experiment_seed_and_hash(composed):
    config = composed("experiment=lenet5_digits", "seed=3")
    assert str(run_path(config)) == f"runs/lenet5_digits/seed3-{learning_hash(config)}"
    config = composed("model=timm", "model.name=torchvision/resnet18", "model.bn_group=32")
    assert run_path(config).parent.name == "torchvision_resnet18-imagenet"


def test_a_class_count_that_does_not_match_is_refused(composed):
    with pytest.raises(UserError, match=r"data.num_classes=1000: .* holds 3 classes"):
        check_data(composed(), {"name": "imagenet", "classes": ["a", "b", "c"]})
    assert check_data(composed("data=imagefolder"), {"name": "imagefolder", "classes": ["a", "b", "c"]}) == 3


def test_data_of_another_name_are_refused(composed):
    with pytest.raises(UserError, match=r"data\.name=imagenet: x was prepared as digits; set data=digits"):
        check_data(composed("data.root=x"), {"name": "digits", "classes": ["a"]})


def test_an_indexed_store_trains_the_same_run(composed):
    """jpeg_indexed has the pixels of jpeg: the same learning hash, and either store serves either configuration."""
    plain, indexed = composed(), composed("data.store.mode=jpeg_indexed")
    assert learning_keys(plain) == learning_keys(indexed) != learning_keys(composed("data.store.mode=raw"))
    for stored in (plain, indexed):
        options = {f"store.{key}": value for key, value in dataclasses.asdict(stored.data.store).items()}
        manifest = {"options": options, "splits": {"train": {"num_samples": 1000}}}
        check_store(plain, manifest)
        check_store(indexed, manifest)
        with pytest.raises(UserError, match=r"data\.store\.mode=raw: .* was prepared with jpeg"):
            check_store(composed("data.store.mode=raw"), manifest)


def test_a_store_with_other_options_or_less_than_a_batch_is_refused(composed):
    options = {f"store.{key}": value for key, value in dataclasses.asdict(composed().data.store).items()}
    manifest = {"options": options, "splits": {"train": {"num_samples": 256}}}
    check_store(composed(), manifest)
    options["store.short_side"] = 256
    with pytest.raises(UserError, match=r"data\.store\.short_side=None: .* was prepared with 256"):
        check_store(composed(), manifest)
    options["store.short_side"], manifest["splits"]["train"]["num_samples"] = None, 255
    with pytest.raises(UserError, match=r"global_batch=256: there are only 255 images .* a batch of at most 255"):
        check_store(composed(), manifest)


def test_a_protocol_chosen_for_a_run_uses_the_sizes_of_the_run(composed, tmp_path):
    trained = composed("experiment=lenet5_digits")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(trained)))
    typed = ["protocol.average=logits", "protocol=five_crop", "checkpoint=x"]  # a group comes first wherever it stands
    config = config_of_run(tmp_path, typed, conf=CONF)
    assert (config.protocol.name, config.protocol.size, config.protocol.side) == ("five_crop", 32, 36)
    assert config.protocol.average == "logits" and config.model.name == "lenet5"
    with pytest.raises(UserError, match="model=resnet50: the run of the checkpoint fixes this key"):
        config_of_run(tmp_path, ["model=resnet50"], conf=CONF)
    for broken in ("}{", "- a", "a: 1", ""):
        (tmp_path / "config.yaml").write_text(broken)
        with pytest.raises(UserError, match=r"config\.yaml: not the configuration of a run of this version"):
            config_of_run(tmp_path, [], conf=CONF)


def test_the_configuration_of_a_run_is_plain_data(composed, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "told")
    values = dataclasses.asdict(composed("experiment=lenet5_digits"))
    values["data"]["root"] = "${oc.env:SECRET}"
    values["model"]["kwargs"] = {"a": "${seed}", "_target_": "os.system"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert read_config(tmp_path)["data"]["root"] == "${oc.env:SECRET}"
    config = config_of_run(tmp_path, ["protocol=five_crop"], conf=CONF)
    assert config.data.root == "${oc.env:SECRET}"
    assert config.model.kwargs == {"a": "${seed}", "_target_": "os.system"}
    for section in ({"hydra": {"run": {"dir": "/tmp"}}}, {"defaults": ["_self_"]}, {"_target_": "os.system"}):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(values | section))
        with pytest.raises(UserError, match=rf"{next(iter(section))}: there is no such key"):
            config_of_run(tmp_path, [], conf=CONF)


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configuration_of_every_experiment_survives_a_round_trip(composed, tmp_path, path):
    config = composed(f"experiment={path.stem}")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config))))
    assert config_of_run(tmp_path, [], conf=CONF) == config


def test_ffcv_in_a_run_of_earlier_code_means_our_own_loader(tmp_path):
    """Their config.yaml names no format. The digest beside it is of what was written, under the old name."""
    (tmp_path / "config.yaml").write_bytes(Path(__file__).with_name("config_before_beton.yaml").read_bytes())
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert written["data"]["loader"] == "ffcv" and "config_format" not in written
    digest = "28f19d6e3f9d218ee321f3688d10f2460c934790e88aac954f6705bbc579e427"
    (tmp_path / "manifest.json").write_text(json.dumps({"config_sha256": digest}))
    assert read_config(tmp_path)["data"]["loader"] == "beton"
    config = config_of_run(tmp_path, [], conf=CONF)
    assert config.data.loader == "beton"
    assert learning_hash(config) == "13e08b98"  # as its folder is called
    assert config_of_run(tmp_path, ["data.loader=ffcv"], conf=CONF).data.loader == "ffcv"


def test_the_removed_tracker_in_a_run_of_earlier_code_is_none(tmp_path, composed):
    config = composed("experiment=lenet5_digits", "tracker=none")
    content = {"config_format": CONFIG_FORMAT, **dataclasses.asdict(config)}
    content["tracker"]["name"] = "csv"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "manifest.json").write_text(json.dumps({"config_sha256": config_sha256(content)}))
    assert read_config(tmp_path)["tracker"]["name"] == "none"
    assert config_of_run(tmp_path, [], conf=CONF) == config
    assert learning_hash(config) == learning_hash(composed("experiment=lenet5_digits", "tracker=wandb"))


def test_a_configuration_of_a_later_format_is_refused(composed, tmp_path):
    content = {"config_format": CONFIG_FORMAT + 1, **dataclasses.asdict(composed())}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"config_format must be .* not 3"):
        read_config(tmp_path)


def test_an_apostrophe_in_a_path_is_read_as_it_was_typed(tmp_path, composed):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(composed("model=lenet5", "data=digits"))))
    path = r"""checkpoint='/it\'s [here], "there"/last.ckpt'"""
    assert config_of_run(tmp_path, [path], conf=CONF).checkpoint == """/it's [here], "there"/last.ckpt"""
    assert config_of_run(tmp_path, ["checkpoint=[a.ckpt,b.ckpt]"], conf=CONF).checkpoint == ["a.ckpt", "b.ckpt"]


OPTIONS = {"splits.train": "train", "splits.val": "valid", "undecodable": "stop", "store.mode": "jpeg"}


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (
            "data.splits.val=train",
            r"data\.splits\.val=train: only prepare\.py uses it, and x was prepared with .*=valid",
        ),
        ("data.undecodable=skip", r"was prepared with data\.undecodable=stop"),
        ("data.store.mode=raw", r"was prepared with data\.store\.mode=jpeg"),
        ("+data.check_md5=true", r"data\.check_md5=True: only prepare\.py uses it; leave it out"),
    ],
)
def test_a_key_that_only_prepare_uses_is_refused(composed, typed, words):
    with pytest.raises(UserError, match=words):
        config = composed("data=imagefolder", "data.root=x", typed)
        check_preparation(config, {"options": OPTIONS}, keys_typed([typed]))


def test_preparation_options_may_be_repeated_and_only_typed_ones_are_compared(composed):
    check_preparation(composed("data.splits.val=valid"), {"options": OPTIONS}, {"data.splits.val"})
    check_preparation(composed("data.splits.val=other"), {"options": OPTIONS}, {"data", "seed"})
