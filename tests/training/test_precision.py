"""Which operations may use TF32 in each precision, in training and evaluation, and what is recorded about it."""

from pathlib import Path

import pytest
import torch

from tencrop.config import UserError, check_precision, derive_batches, learning_hash
from tencrop.data.store.manifest import read_manifest
from tencrop.evaluation.evaluate import evaluate_run
from tencrop.models.factory import build_model
from tencrop.records.provenance import session
from tencrop.training.fit import build
from tencrop.training.precision import allow_tf32, set_precision

TF32 = {"fp32": False, "bf16": False, "tf32": True}


@pytest.fixture(autouse=True)
def torchs_own():
    """Set the switches to torch's defaults: convolutions may use TF32."""
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("precision", TF32)
def test_tf32_switches_of_each_precision(precision):
    for before in (True, False):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = before
        expected = TF32[precision]
        assert set_precision(precision) == {"matmul": expected, "cudnn": expected} == allow_tf32()
        assert flags() == (expected, expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_in_fp32_and_bf16_does_not_use_tf32(composed, prepared_photos, precision):
    config = composed(
        "data=imagefolder", f"data.root={prepared_photos}", "model=lenet5_dense", "hardware=cpu",
        "training.global_batch=8", f"training.precision={precision}",
    )  # fmt: skip
    assert flags() == (False, True) and session()["allow_tf32"] == {"matmul": False, "cudnn": True}
    build(config, batches=derive_batches(config), manifest=read_manifest(prepared_photos))
    assert flags() == (False, False) and session()["allow_tf32"] == {"matmul": False, "cudnn": False}


def test_evaluation_in_fp32_does_not_use_tf32(composed, prepared_photos, tmp_path: Path):
    config = composed(
        "data=imagefolder", f"data.root={prepared_photos}", "model=lenet5_dense", "hardware=cpu",
        "hardware.workers=1", "training.precision=fp32",
    )  # fmt: skip
    manifest = read_manifest(prepared_photos)
    torch.manual_seed(0)
    weights = tmp_path / "weights.pth"
    torch.save(build_model(config.model, num_classes=len(manifest["classes"])).state_dict(), weights)
    result = evaluate_run(config, manifest=manifest, checkpoint=weights, out=tmp_path)
    assert result is not None and result["allow_tf32"] == '{"matmul": false, "cudnn": false}'
    assert flags() == (False, False)


def test_tf32_is_refused_on_cpus_and_in_deterministic_runs(composed):
    with pytest.raises(UserError, match=r"precision=tf32: a CPU has no TF32.*set training\.precision=fp32"):
        derive_batches(composed("training.precision=tf32", "hardware=cpu"))
    with pytest.raises(UserError, match=r"precision=tf32: .*deterministic=true"):
        composed("training.precision=tf32", "deterministic=true", "hardware=gpu1")
    for options in (["deterministic=false"], ["deterministic=null"]):
        check_precision(composed("training.precision=tf32", "hardware=gpu1", *options))


def test_tf32_changes_the_learning_keys(composed):
    hashes = {precision: learning_hash(composed(f"training.precision={precision}")) for precision in TF32}
    assert len(set(hashes.values())) == 3
