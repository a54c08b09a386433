import pytest
import timm
import torch

from tencrop.config import Batches, Model
from tencrop.models.factory import build_model
from tencrop.training.classifier import Classifier

STATISTICS = {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}


@pytest.fixture
def classifier(composed):
    """classifier(*overrides): the Lightning module of a small residual network without dropout."""

    def build(*overrides: str) -> Classifier:
        config = composed("model=resnet18", "image_size=32", "short_side=36", "training.global_batch=64", *overrides)
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=10)
        return Classifier(
            config,
            model,
            statistics=STATISTICS,
            batches=Batches(1, 64, 32, 2, "ghost", 1),
            steps_per_epoch=20,
        )

    return build


@pytest.mark.parametrize(("draws", "num_seeds"), [("plain", 3), ("global", 3), ("separate", 4)])
def test_dropout_seed_is_a_function_of_step_and_place_in_the_global_batch(classifier, draws, num_seeds):
    """Two micro-batches are a global batch. If a network's draws are separate, each micro-batch has its own seed."""
    one = classifier()
    assert one.draws == "plain"
    one.draws = draws
    drawn: dict[tuple[int, int], list[torch.Tensor]] = {}
    for step, number in ((0, 0), (0, 1), (1, 0), (0, 2), (0, 0)):
        one.draws_for(step, number)
        drawn.setdefault((step, number), []).append(torch.rand(4))
    assert torch.equal(*drawn[0, 0])
    assert torch.equal(drawn[0, 0][0], drawn[0, 1][0]) == (draws != "separate")
    assert len({tuple(values[0].tolist()) for values in drawn.values()}) == num_seeds
    other = classifier("seed=1")
    other.draws_for(0, 0)
    assert not torch.equal(torch.rand(4), drawn[0, 0][0])


def test_logits_have_the_dtype_of_the_weights(classifier):
    images = torch.randint(256, (32, 32, 32, 3), dtype=torch.uint8)
    exact, fast = (classifier(f"training.precision={precision}") for precision in ("fp32", "bf16"))
    with torch.no_grad():
        one, other = exact.eval().logits(exact.model, images), fast.eval().logits(fast.model, images)
    assert one.dtype == other.dtype == torch.float32
    assert 0 < (one - other).abs().max() < 0.1 * one.abs().max()
    assert all(parameter.dtype == torch.float32 for parameter in fast.parameters())


def test_validation_logits_are_float32_in_every_precision(classifier):
    """Training logits, in contrast, are rounded to bfloat16."""
    one = classifier("training.precision=bf16")
    one.model = build_model(Model("test_resnet", {}, False, None), num_classes=10)
    images = torch.randint(256, (8, 32, 32, 3), dtype=torch.uint8)
    for is_training in (True, False):
        one.train(is_training)
        with torch.no_grad():
            logits = one.logits(one.model, images)
        assert torch.equal(logits, logits.bfloat16().float()) == is_training


def test_channels_last_changes_only_the_memory_layout(classifier):
    images = torch.randint(256, (32, 32, 32, 3), dtype=torch.uint8)
    last, first = (classifier("training.precision=fp32", f"model.channels_last={flag}") for flag in ("true", "false"))
    weights = [parameter for parameter in last.model.parameters() if parameter.ndim == 4 and parameter.shape[2] > 1]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    with torch.no_grad():
        torch.testing.assert_close(
            last.eval().logits(last.model, images), first.eval().logits(first.model, images), rtol=1e-3, atol=1e-4
        )
