"""Weights from files: read without executing anything, applied only where they fit."""

import errno
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from tencrop.config import UserError
from tencrop.models.weights import apply_weights, load_weights


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=10)


def same(network: nn.Module, other: nn.Module) -> bool:
    own, others = network.state_dict(), other.state_dict()
    return own.keys() == others.keys() and all(torch.equal(own[key], others[key]) for key in own)


def small_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_timm_loads_torchvisions_safetensors_and_pth(resnet18: nn.Module, tmp_path: Path) -> None:
    save_file(resnet18.state_dict(), tmp_path / "weights.safetensors")
    torch.save(resnet18.state_dict(), tmp_path / "weights.pth")
    torch.save(resnet18.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for file in ("weights.safetensors", "weights.pth", "old.pth"):
        network = timm.create_model("resnet18", num_classes=10)
        weights = load_weights(tmp_path / file)
        apply_weights(network, weights.state, source=file, name="resnet18")
        assert weights.kind == "raw" and same(network, resnet18)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_stripped(key: str, prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained, network = small_network(), small_network()
    state = {prefix + name: tensor for name, tensor in trained.state_dict().items()}
    torch.save({key: state, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "checkpoint.pth")
    apply_weights(network, load_weights(tmp_path / "checkpoint.pth").state, source="it", name="small")
    assert same(network, trained)


def test_the_networks_own_names_are_not_stripped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained, network = (nn.ModuleDict({"model": nn.Linear(2, 2)}) for _ in range(2))
    apply_weights(network, trained.state_dict(), source="it", name="nested")
    assert same(network, trained)


def test_ema_weights_are_taken_where_present(tmp_path: Path) -> None:
    path, plain = tmp_path / "both.ckpt", tmp_path / "plain.pth"
    raw, ema = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    torch.save({"state_dict": raw, "state_dict_ema": ema}, path)
    torch.save(raw, plain)
    assert load_weights(path).kind == load_weights(path, ema=True).kind == "ema"
    assert load_weights(path).state["w"].sum() == 2
    assert load_weights(path, ema=False).kind == "raw" and load_weights(path, ema=False).state["w"].sum() == 0
    assert load_weights(plain, ema=False).kind == load_weights(plain).kind == "raw"
    with pytest.raises(UserError, match="no EMA"):
        load_weights(plain, ema=True)


class Malicious:
    """Creates a file when pickle.load reads it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("form", ["zip", "plain pickle"])
def test_a_malicious_pickle_is_not_executed(form: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "weights.pth"
    content = {"state_dict": {"w": torch.zeros(1)}, "args": Malicious(trace)}
    if form == "zip":
        torch.save(content, path)
        assert zipfile.is_zipfile(path)
    else:
        path.write_bytes(pickle.dumps(content["args"], protocol=2))
    with pytest.raises(UserError) as refusal:
        load_weights(path)
    assert not trace.exists()
    assert "system" in str(refusal.value) and str(path) in str(refusal.value) and "\n" not in str(refusal.value)
    pickle.loads(pickle.dumps(Malicious(trace)))
    assert trace.exists(), "the test's pickle does nothing, so it shows nothing"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_broken_files_are_refused_in_a_sentence(suffix: str, tmp_path: Path) -> None:
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"broken{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)({"w": torch.zeros(1000)}, whole)
    for content in (b"", b"no weights at all", whole.read_bytes()[:-500]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="broken"):
            load_weights(path)
    path.write_bytes(b"\x80\x04K\x01.")  # a pickle of another protocol
    with pytest.raises(UserError, match="broken"):
        load_weights(path)
    with pytest.raises(UserError, match="no such file"):
        load_weights(tmp_path / "missing.pth")


def test_a_flipped_bit_in_a_publishers_file_is_found_by_its_checksum(tmp_path: Path) -> None:
    """torch.load itself does not compare the CRC-32 that torch.save wrote."""
    path, weight = tmp_path / "weights.pth", torch.arange(1000.0)
    torch.save({"weight": weight}, path)
    content = bytearray(path.read_bytes())
    content[content.index(weight.numpy().tobytes()) + 1001] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["weight"], weight)
    with pytest.raises(UserError, match=r"weights\.pth: is damaged: .*data/0 in it is not what was written \(CRC-32\)"):
        load_weights(path)


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 1, "optimizer": {}}, tmp_path / "strange.pth")
    with pytest.raises(UserError, match="epoch, optimizer"):
        load_weights(tmp_path / "strange.pth")


def test_another_architecture_is_refused_naming_the_first_differences(resnet18: nn.Module) -> None:
    with pytest.raises(UserError, match=r"^here\.pth: .*resnet34: missing: layer1\.2\.conv1\.weight, .* more;"):
        apply_weights(
            timm.create_model("resnet34", num_classes=10), resnet18.state_dict(), source="here.pth", name="resnet34"
        )
    with pytest.raises(UserError, match=r"unexpected: layer1\.2\.conv1\.weight"):
        apply_weights(resnet18, timm.create_model("resnet34", num_classes=10).state_dict(), source="f", name="resnet18")


def test_another_number_of_classes_is_refused(resnet18: nn.Module) -> None:
    before = {key: tensor.clone() for key, tensor in resnet18.state_dict().items()}
    other = timm.create_model("resnet18", num_classes=7).state_dict()
    with pytest.raises(
        UserError, match=r"fc\.weight is \[7, 512\] instead of \[10, 512\], fc\.bias is \[7\].*; choose the model"
    ):
        apply_weights(resnet18, other, source="f", name="resnet18")
    assert all(torch.equal(before[key], tensor) for key, tensor in resnet18.state_dict().items())


def test_old_weights_without_batch_counts_are_accepted(resnet18: nn.Module) -> None:
    state = {key: tensor for key, tensor in resnet18.state_dict().items() if "num_batches" not in key}
    network = timm.create_model("resnet18", num_classes=10)
    apply_weights(network, state, source="f", name="resnet18")
    assert same(network, resnet18)


def test_an_unreadable_file_is_not_reported_as_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("tencrop.models.weights.load_checked", refused)
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(UserError, match=r"last\.ckpt: cannot be read \(Permission denied\)"):
        load_weights(tmp_path / "last.ckpt")
