"""Recipes that start from a trained network, or learn from one: where it lies, and the last layer."""

import dataclasses

import pytest
from torch import nn

from tencrop.config import run_path
from tencrop.config.schema import Distill
from tencrop.models.factory import build_model
from tencrop.tables.reading import read_table
from typed import layer_at

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


@pytest.mark.parametrize("table", ["convnext", "deit_readme", "deit_resolutions", "deit_table5", "swin", "vit_table5"])
def test_a_row_that_fine_tunes_names_the_row_of_the_run_that_it_starts_from(table, composed):
    """The one at whose folder its recipe looks, but for the 1000 epochs that no recipe has by itself."""
    fine_tuned = [row for row in read_table(table).rows if row.training and row.training.init]
    assert fine_tuned
    for row in fine_tuned:
        assert row.training is not None and row.training.init is not None
        source = composed(*row.training.init.overrides)
        if source.training.epochs != 1000:
            assert composed(*row.training.overrides).training.init.checkpoint == str(run_path(source))


@pytest.mark.parametrize("model", ["tiny", "small", "base"])
def test_a_distilled_deit_differs_from_the_plain_one_by_its_teacher(model, composed):
    plain, distilled = (composed(f"model=deit_{model}{kind}_patch16_224") for kind in ("", "_distilled"))
    assert distilled.training.distill == Distill("regnety_160-a5fe301d.pth", "regnety_160", "hard", 0.5)
    training = dataclasses.replace(distilled.training, distill=Distill())
    recipe = dataclasses.replace(distilled, model=plain.model, training=training, recipe=plain.recipe)
    assert recipe == plain


def test_the_new_last_layer_of_a_fine_tuned_vit_starts_at_0(composed):
    """As in the authors' code, whose head has kernel_init zeros."""
    config = composed("experiment=vit_384", "+model.kwargs.depth=1")
    assert config.training.init.head == "new"
    head = layer_at(build_model(config.model, num_classes=10), "head", nn.Linear)
    assert all(not parameter.any() for parameter in head.parameters())
