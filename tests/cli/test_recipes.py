"""A model brings its own recipe: every way to ask for it gives the same run, and a first line that says which it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import tencrop.commands.evaluate
import tencrop.commands.train
from tencrop.cli.choices import CONF, describe, files_of, options_of
from tencrop.cli.command import command
from tencrop.cli.compose import compose_training
from tencrop.cli.recipes import own_experiment, own_recipes
from tencrop.config import Config, EvaluateConfig, UserError, learning_hash, plain_config, run_path
from tencrop.config.recipes import guesses_of, recipe_line

VGG = "recipe: experiment=vgg_d, Simonyan and Zisserman 2015, 6 guesses, 2 differences"
PLAIN = "recipe: experiment=null, the 90-epoch recipe of fb.resnet.torch, 0 guesses, 2 differences"
OTHER = PLAIN + "; not the network's own recipe, which conf/experiment does not have"
WAYS = {
    "model=vgg_d": (VGG, "b99e427b"),
    "experiment=vgg_d": (VGG, "b99e427b"),
    "experiment=vgg": (VGG, "b99e427b"),
    "experiment=vgg_d model=vgg_d": (VGG, "b99e427b"),
    "model=vgg_d experiment=auto": (VGG, "b99e427b"),
    "model=vgg_d optimizer=sgd_alexnet": (VGG, "b99e427b"),  # the recipe's own choice, so nothing is replaced
    "experiment=vgg_e model=vgg_d": (VGG, "b99e427b"),
    "model=vgg_d experiment=null": (PLAIN, "04031a77"),
    "model=vgg_d optimizer=adamw": (
        "recipe: experiment=vgg_d, Simonyan and Zisserman 2015, 4 guesses, 2 differences; optimizer=adamw replaces its"
        " optimizer",
        "11c08648",
    ),
    "experiment=vgg model=resnet50": (
        VGG.replace("vgg_d", "vgg") + "; model=resnet50 replaces its model",
        "8bed8699",
    ),
    "model=regnety_040": (
        "recipe: experiment=regnety_040, Radosavovic et al. 2020 (pycls), 5 guesses",
        "5485bfe3",
    ),
    "model=vit_small_patch16_224": (OTHER, "3d321678"),
    "model=timm model.name=vgg_d": (OTHER, "04031a77"),
    "model=vgg_d model.name=vgg_e": (OTHER, "836a06ef"),
    "": ("recipe: experiment=resnet50, fb.resnet.torch, 0 guesses, 3 differences", "28668f16"),
    "experiment=null": (PLAIN, "28668f16"),
}


SCHEMAS = {"train": Config, "evaluate": EvaluateConfig}


def said(config: Config) -> tuple[str | None, str]:
    return recipe_line(config), learning_hash(config)


def run(words: list[str], config_name: str = "train") -> list[Config]:
    """The configurations of the runs that a command line starts, through Hydra."""
    configs: list[Config] = []
    with pytest.raises(SystemExit) as stop:
        command(config_name, SCHEMAS[config_name])(configs.append)(words)
    assert stop.value.code == 0
    return configs


@pytest.mark.parametrize("words", WAYS)
def test_each_way_to_name_a_recipe(words):
    config = compose_training(words.split(), CONF)
    assert said(config) == WAYS[words]


def test_the_commands_agree_with_compose_training(tmp_path):
    words = ["model=vgg_d", "seed=1"]
    (typed,) = run(words)
    assert typed == compose_training(words, CONF) and said(typed) == WAYS["model=vgg_d"]
    (evaluated,) = run(words, "evaluate")
    assert plain_config(evaluated) == typed
    swept = run(["-m", "model=vgg_d,vit_small_patch16_224", f"hydra.sweep.dir={tmp_path}"])
    assert [said(config) for config in swept] == [WAYS["model=vgg_d"], WAYS["model=vit_small_patch16_224"]]
    swept = run(["-m", "experiment=vgg_d,null", "model=vgg_d", f"hydra.sweep.dir={tmp_path}"])
    assert [said(config) for config in swept] == [WAYS["model=vgg_d"], WAYS["model=vgg_d experiment=null"]]


def test_a_sweep_over_models_may_set_a_key_that_only_their_recipe_has(tmp_path):
    models = "model=vit_base_patch16_224,vit_base_patch32_224"
    configs = run(["-m", models, "schedule.min_lr=0.1", f"hydra.sweep.dir={tmp_path}"])
    assert [config.schedule.min_lr for config in configs] == [0.1, 0.1]


def test_cfg_job_shows_the_recipe(capsys):
    with pytest.raises(SystemExit):
        command("train", Config)(lambda _: None)(["model=vgg_d", "--cfg", "job"])
    shown = OmegaConf.create(capsys.readouterr().out)
    assert (shown.optimizer.name, shown.recipe.experiment) == ("sgd_alexnet", "vgg_d")


def test_a_run_is_repeated_with_its_recipe_from_its_resolved_configuration(tmp_path):
    """As records/reproduce.py calls train.py: without a defaults list."""
    config = compose_training(["model=regnety_320", "optimizer=adamw"], CONF)
    (tmp_path / "again.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config))))
    words = ["--config-path", str(tmp_path), "--config-name", "again", "hydra.run.dir=.", "hydra.output_subdir=null"]
    (again,) = run([*words, "hydra/job_logging=none", "hydra/hydra_logging=none"])
    assert again == config


@pytest.mark.parametrize("main", [tencrop.commands.train.main, tencrop.commands.evaluate.main])
def test_the_line_is_the_first_one_printed(main, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["model=vgg_d", f"data.root={tmp_path}", f"runs={tmp_path}"])
    out, error = capsys.readouterr()
    assert (stop.value.code, out) == (2, VGG + "\n") and str(tmp_path) in error


def test_one_line_a_run_in_a_sweep(capsys, tmp_path):
    with pytest.raises(SystemExit):
        tencrop.commands.train.main(
            ["-m", "model=vgg_d,vit_small_patch16_224", f"hydra.sweep.dir={tmp_path}", "data.root=x"]
        )
    assert capsys.readouterr().out.splitlines() == [VGG, OTHER]


def test_weights_from_elsewhere_are_not_evaluated_by_the_recipe(tmp_path):
    (with_weights,) = run(["model=vgg_d", "weights=x.pth"], "evaluate")
    assert with_weights.protocol.name == "center" and with_weights.normalization.mean == "imagenet"
    (named,) = run(["model=vgg_d", "experiment=vgg_d", "weights=x.pth"], "evaluate")
    assert named.protocol.name == "dense" and named.normalization.mean == "dataset"


def test_a_replaced_group_leaves_none_of_the_experiments_values_behind():
    config = compose_training(["experiment=alexnet_figure1_tanh", "optimizer=adamw"], CONF)
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (1e-3, 0.05)  # those of adamw.yaml
    assert guesses_of(config) == ["training.global_batch", "training.epochs", "training.precision"]
    config = compose_training(["model=regnety_320", "optimizer=adamw", "optimizer.lr=0.5"], CONF)
    assert (config.optimizer.lr, config.training.global_batch) == (0.5, 256)


def test_values_of_a_model_in_the_table_of_its_family():
    found = {}
    for model in ("regnetx_016", "regnety_040", "regnety_160"):
        config = compose_training([f"model={model}"], CONF)
        found[model] = (config.training.global_batch, config.optimizer.lr, config.model.bn_group)
    assert found == {"regnetx_016": (1024, 0.8, 128), "regnety_040": (512, 0.4, 64), "regnety_160": (256, 0.2, 32)}


def test_auto_chooses_neither_data_nor_name():
    for words in (["model=vgg_d", "data=cifar10"], ["experiment=vgg_d", "data=cifar10"]):
        config = compose_training(words, CONF)
        assert config.data.name == "cifar10" and run_path(config).parent.name == "vgg_d-cifar10"


def test_every_own_recipe_is_of_a_model_file_and_of_one_experiment():
    models = [model for models in own_recipes(CONF / "experiment").values() for model in models]
    assert len(models) == len(set(models)) and set(models) <= set(files_of("model"))
    assert {own_experiment(model, [CONF / "experiment"]) for model in models} < set(files_of("experiment"))
    assert set(models) <= set(options_of("experiment"))


def test_the_lists_say_which_belong_together():
    assert "vgg_e" in describe("model") and describe("model").count("(experiment=vgg)") == 6
    assert "(model=vgg_a, vgg_a_lrn, vgg_b, vgg_c, vgg_d, vgg_e)" in describe("experiment")


@pytest.fixture
def own(tmp_path):
    """own(text): a file `mine` of --config-dir; returns the words that name its folder."""
    (tmp_path / "experiment").mkdir()

    def write(text: str) -> list[str]:
        (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}")
        return ["--config-dir", str(tmp_path)]

    return write


def test_a_recipe_of_the_users_own_folder_is_found(own):
    (config,) = run(
        [*own("recipe: {models: [vit_small_patch16_224]}\ntraining: {epochs: 3}\n"), "model=vit_small_patch16_224"]
    )
    assert config.training.epochs == 3 and recipe_line(config) == "recipe: experiment=vit_small_patch16_224"


MISTAKES = {
    "recipe: {guesses: [optimizer.lrr]}": (
        ["experiment=mine"],
        "guesses: optimizer.lrr: there is no such key; did you",
    ),
    "recipe: {guesses: optimizer.lr}": (["experiment=mine"], "experiment=mine: recipe.guesses must be a list"),
    "recipe: {models: [vgg_d]}": (["model=vgg_d"], "the experiments vgg and mine both list it in recipe.models"),
    "recipe: {models: [lenet5]}\nname: a": (["model=lenet5"], "experiment=mine: sets name, which is left to the user"),
    "recipe: {models: [lenet5}": (["model=lenet5"], "mine.yaml: line 2: "),
    "recipe: {models: {lenet5: {optimizer.lrr: 1}}}": (["model=lenet5"], "optimizer.lrr: there is no such key"),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_an_own_recipe_is_one_sentence(own, capsys, text):
    words, sentence = MISTAKES[text]
    with pytest.raises(SystemExit) as stop:
        command("train", Config)(lambda _: None)([*own(text), *words])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and sentence in error and error.count("\n") == 1, error


def test_a_broken_file_stops_only_the_models_that_it_mentions(own):
    (config,) = run([*own("recipe: {models: [lenet5}\n"), "model=vgg_d"])
    assert said(config) == WAYS["model=vgg_d"]


@pytest.mark.parametrize("word", ["experiment=vgg_f", "experiment=vgg_dd"])
def test_a_wrong_name_is_answered_with_the_models_too(word):
    with pytest.raises(UserError, match=r"did you mean .*vgg_d"):
        compose_training([word], CONF)


@pytest.mark.parametrize("word", ["recipe=vgg_d", "recipe.guesses=[]", "++recipe.source=mine"])
def test_what_a_recipe_says_about_itself_cannot_be_typed(word, capsys):
    with pytest.raises(SystemExit) as stop:
        command("train", Config)(lambda _: None)([word])
    assert stop.value.code == 2 and "choose one with experiment=NAME or model=NAME" in capsys.readouterr().err


def test_the_line_of_a_run_of_earlier_code_is_left_out():
    config = compose_training(["model=vgg_d"], Path(CONF))
    assert recipe_line(dataclasses.replace(config, recipe=None)) is None
