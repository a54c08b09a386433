"""Released weights: recognized by the names that their publishers give them, and judged on the whole val split only."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file

from tencrop.cli.choices import CONF
from tencrop.commands import calibrate as module
from tencrop.commands.calibrate import Calibrated, calibrate, verdict
from tencrop.config import EvaluateConfig, UserError, validate
from tencrop.tables.reading import read_table
from tencrop.tables.released import Released, lies_within, recognized, released_weights

TABLE = read_table("calibration")
KNOWN = released_weights(TABLE)


def test_every_row_of_the_table_has_a_file() -> None:
    assert {one.row.id for one in KNOWN if one.row is not None} == {row.id for row in TABLE.rows}


@pytest.mark.parametrize("one", KNOWN, ids=lambda one: min(one.stems))
def test_files_have_their_publishers_names_and_errors(one: Released) -> None:
    if one.model.startswith("torchvision/"):
        every = torchvision.models.get_model_weights(one.model.removeprefix("torchvision/"))
        (its,) = (weights for weights in every if Path(weights.url).stem in one.stems)
        accuracy = its.meta["_metrics"]["ImageNet-1K"]
        assert one.row is not None and one.row.protocol is not None
        printed = [float(one.row.printed[column] or "nan") for column in ("top1", "top5")]
        assert printed == [accuracy["acc@1"], accuracy["acc@5"]]
        preset = its.transforms()
        assert (preset.crop_size[0], preset.resize_size[0]) == (one.row.protocol.size, one.row.protocol.side)
        return
    assert f"{one.model}.{one.tag}" in one.stems
    cfg = timm.models.get_pretrained_cfg(f"{one.model}.{one.tag}")
    assert cfg is not None, f"timm has no {one.model}.{one.tag}"
    others = one.stems - {f"{one.model}.{one.tag}", "efficientnet_lite0"}
    assert not others or Path(str(cfg.url)).stem in others


def test_arguments_of_a_network_are_typed_as_they_are_written() -> None:
    kwargs = {"global_pool": "avgMAX", "init_weights": False, "img_size": 224}
    words = Released(None, "resnet18", None, kwargs, frozenset()).overrides()
    assert words[2:5] == [
        "+model.kwargs.global_pool=avgMAX", "+model.kwargs.init_weights=false", "+model.kwargs.img_size=224"
    ]  # fmt: skip


def test_recognition_by_name(tmp_path: Path) -> None:
    for name in (
        "resnet18-f37072fd.pth",
        "deit_base_patch16_224-b5f2ef4d.pth",
        "resnet50.a1_in1k.safetensors",
        "my.pth",
        "notes.txt",
    ):
        (tmp_path / name).touch()
    matched, others = recognized(tmp_path, KNOWN)
    found = {(path.name, one.row.id) for path, one in matched if one.row is not None}
    assert found == {
        ("resnet18-f37072fd.pth", "tv_resnet18"),
        ("deit_base_patch16_224-b5f2ef4d.pth", "deit_base"),  # measured with two crops
        ("deit_base_patch16_224-b5f2ef4d.pth", "timm_deit_base"),
        ("resnet50.a1_in1k.safetensors", "timm_resnet50_a1"),
    }
    assert [path.name for path in others] == ["my.pth"]


def by_row(row_id: str) -> Released:
    return next(one for one in KNOWN if one.row is not None and one.row.id == row_id)


def test_words_state_the_published_protocol() -> None:
    assert by_row("tv_resnet50_v2").overrides() == [
        "model=timm", "model.name=torchvision/resnet50", "protocol=center", "protocol.side=232", "protocol.size=224",
        "protocol.region=whole", "protocol.resize=shorter_side", "protocol.filter=bilinear",
    ]  # fmt: skip
    words = by_row("deit_base_384").overrides()  # int(256 / 224 * 384), in the authors' datasets.py
    assert {"+model.kwargs.pretrained_cfg=fb_in1k", "protocol.side=438", "protocol.size=384"} < set(words)
    # How these images were cropped is not stated: the publisher's preprocessing decides.
    assert not any(word.startswith("protocol.side") for word in by_row("timm_tf_efficientnet_b3").overrides())


def measured(row_id: str, top1: float, top5: float, *, num_images: int = 50_000) -> Calibrated:
    result = {"top1_error": top1 / 100, "top5_error": top5 / 100, "num_images": num_images, "num_classes": 1000}
    return Calibrated(Path(f"{row_id}.pth"), by_row(row_id), result)


def test_verdict() -> None:
    near = measured("tv_resnet18", 30.242 + 0.1, 10.922 - 0.1)
    assert near.weights.row is not None and lies_within(TABLE, near.weights.row, near.errors)
    assert (
        verdict(TABLE, [near]) == "data confirmed: all 1 judged evaluations are within 0.1 point of their publishers'"
    )
    far = measured("tv_resnet34", 26.686, 8.58 + 0.11)
    assert verdict(TABLE, [near, far]).startswith("data not confirmed: tv_resnet34.pth of 2 judged differ by more than")
    assert "differs by +0.110" in module._remark(TABLE, far)
    partial = replace_images(near, 1000)
    assert verdict(TABLE, [partial]).startswith("no verdict: 1,000 images in 1,000 classes are not the 50,000")
    unknown = measured("timm_tf_efficientnet_b3", 50.0, 50.0)  # not judged, however far
    assert verdict(TABLE, [near, unknown]).startswith("data confirmed: all 1 judged")
    assert verdict(TABLE, [unknown]).startswith("no verdict: none of these files")


def replace_images(one: Calibrated, num_images: int) -> Calibrated:
    return one._replace(result={**one.result, "num_images": num_images})


def evaluate_config(*words: str) -> tuple[EvaluateConfig, list[str]]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return validate(compose("evaluate", list(words)), EvaluateConfig), list(words)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=3)
    save_file(network.state_dict(), tmp_path / "weights" / "tiny.safetensors")
    save_file(network.state_dict(), tmp_path / "weights" / "other.safetensors")
    return tmp_path / "weights"


def test_recognized_files_are_evaluated_under_their_rows_protocol(
    folder: Path, prepared_photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = by_row("tv_resnet18").row
    assert row is not None
    tiny = Released(row, "test_resnet", "r160_in1k", {}, frozenset(["tiny"]))
    monkeypatch.setattr(module, "released_weights", lambda table: [tiny])
    data = ["data=imagefolder", f"data.root={prepared_photos}", "hardware=cpu", "tracker=none"]
    config, words = evaluate_config("table=calibration", f"weights_dir={folder}", *data)
    assert calibrate(config, words) == 0
    said = capsys.readouterr().out
    assert "bilinear, 224 of 256 px" in said and "mean 127.5" in said  # the row's protocol, the publisher's constants
    line = next(line for line in said.splitlines() if line.startswith("tiny.safetensors  torchvision resnet18"))
    assert " 30.242 " in line and " 10.922 " in line and line.rstrip().endswith("12")
    assert "not recognized by its name: other.safetensors; evaluate it with python evaluate.py weights=" in said
    assert said.splitlines()[-1].startswith("no verdict: 12 images in 3 classes are not the 50,000")


@pytest.mark.parametrize(
    "words, told",
    [
        (["weights_dir=weights"], "is for table=calibration; give both"),
        (["table=calibration", "weights_dir=none"], "weights_dir=none: there is no such folder"),
        (["table=calibration", "weights_dir=weights"], r"recognized by their name \(other\.safetensors, tiny"),
        (["table=calibration", "weights_dir=weights", "protocol=dense"], "protocol=dense: the table's rows give"),
    ],
)
def test_bad_commands_are_refused(folder: Path, words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        calibrate(*evaluate_config(*words))
