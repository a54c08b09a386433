"""Every experiment file composes, builds its network and takes a step; so does the default recipe."""

import pytest

from tencrop.cli.choices import CONF
from tencrop.cli.recipes import recipe_models
from tencrop.config import derive_batches
from tencrop.data.store.manifest import read_manifest
from tencrop.training.fit import build, fit

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml") if path.stem != "auto")
DATA = {"digits": "prepared_digits"}  # by data.name; what is not here takes a step on photographs


@pytest.mark.parametrize("recipe", [*(f"experiment={name}" for name in EXPERIMENTS), "model=resnet50"])
def test_takes_a_step(recipe, composed, request, tmp_path):
    root = request.getfixturevalue(DATA.get(composed(recipe).data.name, "prepared_photos"))
    small = ["training.global_batch=4", "training.max_steps=1", "hardware=cpu", "tracker=none", "data.num_classes=null"]
    groups = [] if composed(recipe).model.bn_group is None else ["model.bn_group=4"]
    groups += [] if composed(recipe).augmentation.mixing.mix_group is None else ["augmentation.mixing.mix_group=4"]
    groups += [] if composed(recipe).training.precise_bn is None else ["training.precise_bn=4"]
    config = composed(recipe, *small, *groups, f"data.root={root}")
    result = fit(*build(config, batches=derive_batches(config), manifest=read_manifest(root)), run_dir=tmp_path)
    assert (result.status, result.step) == ("complete", 1) and result.checkpoint.exists()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_header_tells_the_command(name):
    path = CONF / "experiment" / f"{name}.yaml"
    models = recipe_models(path)
    if models:  # the run is called after the model, as with model=MODEL
        assert any(f"python train.py experiment={model} " in path.read_text() for model in models)
    else:
        assert f"python train.py experiment={name}" in path.read_text() and f"name: {name}" in path.read_text()
