"""Every experiment file composes, builds its network and takes a step; so does the default recipe."""

import dataclasses

import pytest
from torch import nn

from tencrop.cli.choices import CONF
from tencrop.cli.recipes import recipe_models
from tencrop.config import derive_batches, run_path
from tencrop.config.schema import Distill
from tencrop.data.store.manifest import read_manifest
from tencrop.models.factory import build_model
from tencrop.tables.reading import read_table
from tencrop.training.fit import build, fit
from typed import layer_at

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml") if path.stem != "auto")
# A step at 384 pixels takes half a minute with all blocks.
SHALLOW = {
    "deit_384": ["+model.kwargs.depth=1"],
    "vit_384": ["+model.kwargs.depth=1"],
    "swin_384": ["+model.kwargs.depths=[1,1,1,1]"],
    "convnext_384": ["+model.kwargs.depths=[1,1,1,1]"],
}
DATA = {"digits": "prepared_digits"}  # by data.name; what is not here takes a step on photographs


@pytest.mark.parametrize("recipe", [*(f"experiment={name}" for name in EXPERIMENTS), "model=resnet50"])
def test_takes_a_step(recipe, composed, request, tmp_path):
    root = request.getfixturevalue(DATA.get(composed(recipe).data.name, "prepared_photos"))
    small = ["training.global_batch=4", "training.max_steps=1", "hardware=cpu", "tracker=none", "data.num_classes=null"]
    groups = [] if composed(recipe).model.bn_group is None else ["model.bn_group=4"]
    groups += [] if composed(recipe).augmentation.mixing.mix_group is None else ["augmentation.mixing.mix_group=4"]
    groups += [] if composed(recipe).training.precise_bn is None else ["training.precise_bn=4"]
    groups += SHALLOW.get(recipe.removeprefix("experiment="), [])
    config = composed(recipe, *small, *groups, f"data.root={root}")
    result = fit(*build(config, batches=derive_batches(config), manifest=read_manifest(root)), run_dir=tmp_path)
    assert (result.status, result.step) == ("complete", 1) and result.checkpoint.exists()


FINE_TUNED = {
    "convnext_base_384": "convnext_base",
    "convnext_large_384": "convnext_large",
    "deit_base_distilled_patch16_384": "deit_base_distilled_patch16_224",
    "deit_base_patch16_384": "deit_base_patch16_224",
    "swin_base_patch4_window12_384": "swin_base_patch4_window7_224",
    **{
        f"vit_{size}_384": f"vit_{size}_224"
        for size in ("base_patch16", "base_patch32", "large_patch16", "large_patch32")
    },
}


@pytest.mark.parametrize("model", FINE_TUNED)
def test_fine_tuning_starts_from_the_run_of_the_networks_own_recipe(model, composed):
    """At the place where train.py leaves it, so that the command of an error table's row works, and finds its runs."""
    assert composed(f"model={model}").training.init.checkpoint == str(run_path(composed(f"model={FINE_TUNED[model]}")))


def test_1000_epochs_of_distillation_before_fine_tuning(composed):
    words = {
        " ".join(row.words or ())
        for table in ("deit_readme", "deit_table5")
        for row in read_table(table).rows
        if "1000" in row.label
    }
    run = run_path(composed("model=deit_base_distilled_patch16_224", "training.epochs=1000"))
    assert words == {f"experiment=deit_base_distilled_patch16_384 training.init.checkpoint={run}"}


@pytest.mark.parametrize("model", ["tiny", "small", "base"])
def test_a_distilled_deit_differs_from_the_plain_one_by_its_teacher(model, composed):
    plain, distilled = (composed(f"model=deit_{model}{kind}_patch16_224") for kind in ("", "_distilled"))
    assert distilled.training.distill == Distill("regnety_160-a5fe301d.pth", "regnety_160", "hard", 0.5)
    training = dataclasses.replace(distilled.training, distill=Distill())
    recipe = dataclasses.replace(distilled, model=plain.model, training=training, recipe=plain.recipe)
    assert recipe == plain


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_header_tells_the_command(name):
    path = CONF / "experiment" / f"{name}.yaml"
    models = recipe_models(path)
    if models:  # the run is called after the model, as with model=MODEL
        assert any(f"python train.py experiment={model} " in path.read_text() for model in models)
    else:
        assert f"python train.py experiment={name}" in path.read_text() and f"name: {name}" in path.read_text()


def test_the_new_last_layer_of_a_fine_tuned_vit_starts_at_0(composed):
    """As in the authors' code, whose head has kernel_init zeros."""
    config = composed("experiment=vit_384", "+model.kwargs.depth=1")
    assert config.training.init.head == "new"
    head = layer_at(build_model(config.model, num_classes=10), "head", nn.Linear)
    assert all(not parameter.any() for parameter in head.parameters())
