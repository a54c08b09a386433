"""Out of GPU memory in the first step: one sentence with the micro-batch that fits, simulated on the CPU."""

import pytest
import torch

from tencrop.config import UserError, derive_batches
from tencrop.data.store.manifest import read_manifest
from tencrop.training import out_of_memory
from tencrop.training.fit import build, fit
from training import runs


@pytest.fixture(autouse=True)
def usual_algorithms():
    yield
    torch.use_deterministic_algorithms(False)  # fit() has switched them on, and it ran in this process


def build_with_limit(root, *overrides, limit, passes_first=0):
    """A recipe whose network runs out of memory with more than `limit` images, from forward pass `passes_first` on."""
    config, num_passes = runs.recipe(root, "hardware.max_micro_batch=null", *overrides), 0
    data, classifier = build(config, batches=derive_batches(config), manifest=read_manifest(root))

    def run_out(network, inputs):
        nonlocal num_passes
        num_passes += 1
        if num_passes > passes_first and len(inputs[0]) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    classifier.model.register_forward_pre_hook(run_out)
    return data, classifier


def test_the_largest_micro_batch_that_fits_is_named_and_trains(prepared_photos, tmp_path, monkeypatch):
    monkeypatch.setattr(out_of_memory, "_free_memory", lambda device: 16_000_000_000)
    built = build_with_limit(prepared_photos, "training.global_batch=12", limit=4)
    with pytest.raises(UserError) as refusal:
        fit(*built, run_dir=tmp_path)
    assert str(refusal.value) == (
        "hardware.max_micro_batch=null: the first step ran out of memory, since a micro-batch of 12 images needs more"
        " than the 16 GB that are free on cpu; set hardware.max_micro_batch=4, which needed 0 bytes in a trial;"
        " accumulate_grad_batches becomes 3, and what is learned stays"
    )
    assert not list(tmp_path.iterdir())
    options = ("training.global_batch=12", "training.epochs=1", "hardware.max_micro_batch=4")
    assert fit(*build_with_limit(prepared_photos, *options, limit=4), run_dir=tmp_path).status == "complete"


def test_a_layout_that_takes_almost_all_memory_is_not_named(prepared_photos, tmp_path, monkeypatch):
    needed = {6: 10.0, 4: 9.5, 2: 5.0}  # bytes by micro-batch; 12 images run out
    monkeypatch.setattr(out_of_memory, "_free_memory", lambda device: 10)
    monkeypatch.setattr(out_of_memory, "_peak_memory", lambda classifier, layout, device: needed[layout.micro_batch])
    overrides = ("training.global_batch=12", "model.bn_group=2", "augmentation.mixing.mix_group=null")
    built = build_with_limit(prepared_photos, *overrides, limit=6)
    with pytest.raises(UserError, match=r"set hardware.max_micro_batch=2, which needed 5 bytes"):
        fit(*built, run_dir=tmp_path)


@pytest.mark.parametrize(
    ("overrides", "limit", "words"),
    [
        (["model.bn_group=6"], 4, r"it cannot be split: hardware.max_micro_batch=5: a group of model.bn_group=6"),
        (
            ["model.bn_group=1", "image_size=64", "short_side=64"],
            0,
            r"not even a micro-batch of 1 fits: choose a GPU with more memory",
        ),
    ],
)
def test_where_nothing_fits_the_reason_is_given(overrides, limit, words, prepared_photos, tmp_path):
    built = build_with_limit(prepared_photos, *overrides, limit=limit)
    with pytest.raises(UserError, match=words):
        fit(*built, run_dir=tmp_path)


def test_an_error_after_the_first_step_is_not_explained(prepared_photos, tmp_path):
    built = build_with_limit(prepared_photos, limit=2, passes_first=1)
    with pytest.raises(torch.OutOfMemoryError):
        fit(*built, run_dir=tmp_path)


def test_the_first_step_of_a_resumed_run_is_explained(train, prepared_photos, tmp_path):
    train("run", fault={"signal_number": 15, "at_step": 2})
    with pytest.raises(UserError, match=r"set hardware.max_micro_batch=2"):
        fit(*build_with_limit(prepared_photos, limit=2), run_dir=tmp_path / "run")


def test_a_trial_takes_two_optimizer_steps_on_two_micro_batches(prepared_photos):
    config = runs.recipe(prepared_photos)  # 3 micro-batches of 2
    batches = derive_batches(config)
    _, classifier = build(config, batches=batches, manifest=read_manifest(prepared_photos))
    before, sizes = [weight.clone() for weight in classifier.model.parameters()], []
    classifier.model.register_forward_pre_hook(lambda network, inputs: sizes.append(len(inputs[0])))
    out_of_memory._peak_memory(classifier, batches, torch.device("cpu"))
    assert sizes == [2] * 4
    assert any(not torch.equal(*pair) for pair in zip(before, classifier.model.parameters(), strict=True))
