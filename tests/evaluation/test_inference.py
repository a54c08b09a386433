"""Every image is scored once, on one or several processes, with the scores of a slow loop over the files."""

import contextlib
import copy
import io
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch import Tensor, nn

from tencrop.config import Config, UserError, derive_batches
from tencrop.data.store.manifest import read_manifest
from tencrop.evaluation import inference
from tencrop.evaluation.errors import error_rate
from tencrop.evaluation.inference import (
    ScoringTask,
    _score_in_new_processes,
    build_network,
    check_scorable,
    forward,
    open_val_split,
    score_part,
    score_split,
)
from tencrop.evaluation.predictions import Scores
from tencrop.models.checkpoint_files import weights_sha256
from tencrop.training.fit import build
from typed import stand_in

MEAN, STD = [120.0, 110.0, 100.0], [60.0, 61.0, 62.0]
PROTOCOL = ("protocol=five_crop", "protocol.side=38", "protocol.filter=bilinear")


@pytest.fixture
def make_task(save_checkpoint: Callable[..., Path], new_network: Callable[..., nn.Module], tmp_path: Path):
    """make_task(config) -> the task and its network, with the weights on disk."""

    def make(config: Config) -> tuple[ScoringTask, nn.Module]:
        network = new_network(config)
        path = save_checkpoint(tmp_path / "last.ckpt", config, network)
        identity = {"weights_sha256": weights_sha256(network.state_dict()), "protocol": config.protocol.name}
        return ScoringTask(config, path, "raw", 6, MEAN, STD, identity), network

    return make


def five_crops(image: Image.Image, side: int, size: int) -> list[Tensor]:
    """Slow reference: rescale with Pillow, crop by slicing."""
    scale = side / min(image.size)
    width, height = (side if edge == min(image.size) else int(edge * scale + 1e-9) for edge in image.size)
    pixels = torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BILINEAR)))
    bottom, right = height - size, width - size
    places = [(0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2))]
    return [pixels[top : top + size, left : left + size] for top, left in places]


def scores_by_hand(config: Config, network: nn.Module, number: int) -> Tensor:
    """Softmax [K] of one image of the split, averaged over its five crops."""
    image = Image.open(io.BytesIO(open_val_split(config).read_original(number))).convert("RGB")
    crops = torch.stack(five_crops(image, 38, 32)).float()
    inputs = ((crops - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        return network.eval()(inputs).softmax(1).mean(0)


def test_scores_equal_those_of_a_slow_loop(make_config, make_task) -> None:
    task, network = make_task(make_config(*PROTOCOL))
    scores = score_split(task, network)
    assert scores is not None and set(scores.index.tolist()) == set(range(501)) and len(scores.index) == 501
    assert scores.labels.tolist() == [
        number // 84 if number < 252 else 3 + (number - 252) // 83 for number in range(501)
    ]
    for number in (0, 1, 250, 499, 500):
        expected = scores_by_hand(task.config, network, number)
        torch.testing.assert_close(scores.softmax[number].float(), expected, rtol=2e-3, atol=2e-4)
    assert scores.softmax.float().sum(1) == pytest.approx(torch.ones(501).tolist(), abs=2e-3)
    assert 0 < error_rate(scores.ranks("softmax"), 1).fraction <= 1
    assert scores.metadata == task.identity and scores.view_logits is None


def test_class_scores_are_float32_in_every_precision(make_config, make_task) -> None:
    task, _ = make_task(make_config("training.precision=bf16"))
    with torch.inference_mode():
        logits = forward(build_network(task).eval(), torch.randn(8, 3, 32, 32), task.config)
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())


def test_501_images_on_three_processes_are_each_counted_once(make_config, make_task) -> None:
    task, network = make_task(make_config(*PROTOCOL, "hardware.max_micro_batch=64"))
    alone = score_split(task, network)
    task, network = make_task(make_config(*PROTOCOL, "hardware.devices=3", "hardware.max_micro_batch=64"))
    split = open_val_split(task.config)
    parts = [score_part(task, network, split, rank=rank, num_ranks=4) for rank in range(4)]
    assert [len(part.index) for part in parts] == [125, 125, 125, 126], "parts are uneven"
    together = score_split(task, network)
    assert alone is not None and together is not None
    assert set(together.index.tolist()) == set(range(501)) and len(together.index) == 501
    assert torch.equal(together.labels, alone.labels)
    assert torch.equal(together.softmax_ranks, alone.softmax_ranks)
    torch.testing.assert_close(together.softmax, alone.softmax, rtol=1e-3, atol=1e-3)


def test_more_processes_than_images(make_config, make_task, coordinate_store) -> None:
    root = coordinate_store([(40, 40), (36, 50)], num_classes=None)
    config = make_config(f"data.root={root}", "protocol=center", "protocol.side=null")
    task, network = make_task(config)
    split = open_val_split(config)
    parts = [score_part(task, network, split, rank=rank, num_ranks=3) for rank in range(3)]
    assert sorted(len(part.index) for part in parts) == [0, 1, 1]
    assert {part.softmax.shape[1] for part in parts} == {6}


@pytest.mark.parametrize("loader", ["beton", "torch"])
def test_views_are_saved_on_request(loader: str, make_config, make_task) -> None:
    config = make_config("protocol=ten_crop", f"data.loader={loader}", "training.precision=bf16")
    config.save_views = True
    task, network = make_task(config)
    split = open_val_split(config)
    part: Scores = score_part(task, network, split, rank=2, num_ranks=40)
    assert part.view_logits is not None and part.view_logits.shape == (len(part.index), 10, 6)
    torch.testing.assert_close(part.view_logits.float().mean(1), part.logits.float(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("start", ["in its group", "alone", "in new processes"])
def test_the_local_rank_chooses_the_gpu(make_config, make_task, monkeypatch, start) -> None:
    """Rank 1 of four is the first rank of the second machine if srun assigns ranks in turn."""
    devices = {"in its group": 2, "alone": 1, "in new processes": 2}[start]
    config = make_config("hardware.accelerator=gpu", f"hardware.devices={devices}", "hardware.nodes=2")
    task, network = make_task(config)
    used: list[int] = []

    class Known(Exception):
        """Raised when the device has been recorded, to end the pass."""

    def set_device(number: int) -> None:
        used.append(number)
        raise Known

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setenv("LOCAL_RANK", "0")
    if start == "in its group":
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_rank", lambda: 1)
        monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    with pytest.raises(Known):
        if start == "in new processes":
            monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
            inference._process(1, task, 2, Path("."), multiprocessing.get_context("spawn").SimpleQueue())
        else:
            score_split(task, network)
    assert used == [1 if start == "in new processes" else 0]


def test_images_smaller_than_the_crop_are_refused_by_name(make_config, make_task) -> None:
    task, network = make_task(make_config("protocol.side=null", "protocol.size=40"))
    with pytest.raises(UserError, match=r"protocol\.side=null: class0/000\.png has a shorter side of 36 pixels"):
        check_scorable(network, task.config)


def test_a_damaged_image_is_named(make_config, make_task, photo_folder, data_config, tmp_path) -> None:
    from tencrop.data.preparation.prepare import prepare

    root = prepare(data_config(photo_folder, tmp_path / "data"), workers=1, progress=False)
    config = make_config(f"data.root={root}", "protocol.side=40")
    beton = open_val_split(config).beton
    start = int(beton.pointers[4])
    with open(root / "val.beton", "r+b") as file:
        file.seek(start + 2)
        file.write(b"\\0" * (int(beton.payload_bytes[4]) - 2))
    task, network = make_task(config)
    with pytest.raises(UserError, match=open_val_split(config).names(4)):
        score_split(task, network)


def test_a_checkpoint_overwritten_during_evaluation_is_detected(
    make_config, make_task, new_network, save_checkpoint
) -> None:
    """A UserError in a started process is a UserError here as well."""
    task, _ = make_task(make_config())
    save_checkpoint(task.path, task.config, new_network(task.config, seed=1))
    with pytest.raises(UserError, match="was overwritten during its evaluation"):
        _score_in_new_processes(task, num_processes=1)


def test_a_full_temporary_disk_gives_an_error_message(make_config, make_task, small_disk, monkeypatch) -> None:
    with pytest.raises(OSError, match="No space"), open(small_disk / "full", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(small_disk / "full", (small_disk / "full").stat().st_size - 3 * 4096)  # the processes meet, no more
    monkeypatch.setenv("TMPDIR", str(small_disk))
    monkeypatch.setattr(tempfile, "tempdir", None)
    task, network = make_task(make_config("hardware.devices=2"))
    with pytest.raises(UserError, match="the disk is full"):
        score_split(task, network)


DENSE = ("model=vgg_a", "+model.kwargs.width=0.1", "+model.kwargs.img_size=32", "protocol=dense")


def dense_by_hand(config: Config, network: nn.Module, number: int, sides: list[int]) -> Tensor:
    """Softmax [K] of one image: the head applied to every window of the features, for the image and its reflection."""
    image = Image.open(io.BytesIO(open_val_split(config).read_original(number))).convert("RGB")
    softmax = []
    features, classifier = network.get_submodule("features"), network.get_submodule("classifier")
    for side in sides:
        width, height = (
            side if edge == min(image.size) else int(edge * side / min(image.size) + 1e-9) for edge in image.size
        )
        scaled = image.resize((width, height), Image.Resampling.BILINEAR)
        for view in (scaled, scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
            pixels = (torch.tensor(np.array(view)).float() - torch.tensor(MEAN)) / torch.tensor(STD)
            with torch.inference_mode():
                maps = features(pixels.permute(2, 0, 1)[None])
                assert maps.shape[2:] == (height // 32, width // 32)
                windows = [classifier(maps[0, :, row, column]) for row, column in np.ndindex(*maps.shape[2:])]
                softmax.append(torch.stack(windows).mean(0).softmax(0))
    return torch.stack(softmax).mean(0)


@pytest.mark.parametrize("sides", [[64], [64, 70, 96]])
def test_dense_scores_equal_those_of_a_slow_loop(sides: list[int], make_config, make_task) -> None:
    config = make_config(*DENSE, f"protocol.side={sides}", "protocol.filter=bilinear", "hardware.max_micro_batch=20")
    config.save_views = True
    task, network = make_task(config)
    split = open_val_split(config)
    part = score_part(task, network, split, rank=3, num_ranks=10)
    assert part.view_logits is not None and part.view_logits.shape == (len(part.index), 2 * len(sides), 6)
    for position in (0, 17, len(part.index) - 1):
        expected = dense_by_hand(config, network.eval(), int(part.index[position]), sides)
        torch.testing.assert_close(part.softmax[position].float(), expected, rtol=2e-3, atol=2e-4)


def test_the_memory_of_dense_evaluation_is_reported_first(make_config, make_task, monkeypatch, capsys) -> None:
    config = make_config(*DENSE, "protocol.side=[64,72]", "hardware.max_micro_batch=10")
    _, network = make_task(config)
    check_scorable(network, config)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(inference, "largest_layer_bytes", lambda network, height, width: 1e5 * height * width)
    check_scorable(network, config)
    assert capsys.readouterr().err == (  # of the images of 36 x 44, ten times 88 x 72 x 1e5 bytes
        "protocol=dense: images of up to 88 x 72 pixels take up to 6.3 GB in one layer of vgg_a, 10 at once"
        " (hardware.max_micro_batch)\n"
    )


@pytest.mark.parametrize("options", [("protocol=center",), DENSE, ("protocol=center", "protocol.size=5")])
def test_check_scorable_leaves_the_network_as_it_was(options, make_config, new_network) -> None:
    config = make_config(*options)
    network = nn.Sequential(new_network(config), nn.BatchNorm1d(6), nn.Dropout(0.5)).train()
    network[2].eval()  # as for a frozen layer
    before = copy.deepcopy(network)
    random_state = torch.get_rng_state()
    with contextlib.suppress(UserError):  # Sequential has no convolutional form, and 5 pixels are too few
        check_scorable(network, config)
    with contextlib.suppress(UserError):
        check_scorable(network[0], config)
    after = dict(network.named_modules())
    assert {name: layer.training for name, layer in before.named_modules()} == {n: m.training for n, m in after.items()}
    for name, layer in before.named_modules():
        assert len(layer._forward_hooks) == len(after[name]._forward_hooks), name
    for name, value in before.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_144_crops_average_over_all_sides(make_config, make_task) -> None:
    """The scores are the mean over the four sides of the scores at each side alone."""
    options = ("protocol=crops_144", "protocol.filter=bilinear")
    config = make_config(*options, "protocol.side=[36,38,40,44]")
    task, network = make_task(config)
    split = open_val_split(config)
    together = score_part(task, network, split, rank=0, num_ranks=40)
    alone = []
    for side in (36, 38, 40, 44):
        task, _ = make_task(make_config(*options, f"protocol.side={side}"))
        alone.append(score_part(task, network, split, rank=0, num_ranks=40).softmax.float())
    assert len(together.index) == 12
    torch.testing.assert_close(together.softmax.float(), torch.stack(alone).mean(0), rtol=2e-3, atol=2e-4)


def test_dense_refuses_a_network_that_cannot_be_converted(make_config, make_task) -> None:
    task, network = make_task(make_config("protocol=dense"))
    with pytest.raises(UserError, match="lenet5_dense cannot be made fully convolutional"):
        score_split(task, network)


def test_without_a_terminal_progress_is_printed_as_plain_lines(make_config, make_task, monkeypatch, capfd) -> None:
    task, network = make_task(make_config("protocol=center", "hardware.max_micro_batch=200"))
    score_split(task, network)
    assert capfd.readouterr() == ("", ""), "it took no time"
    monkeypatch.setattr("tencrop.progress.LINE_EVERY_S", 0)
    score_split(task, network)
    out, err = capfd.readouterr()
    assert out == "" and "\x1b" not in err and "\r" not in err
    assert [line.split(" images")[0] for line in err.splitlines()] == [
        "evaluating: 200 of 501", "evaluating: 400 of 501", "evaluating: 501 of 501",
    ]  # fmt: skip
    assert err.endswith(" images/s\n")


def test_too_large_an_image_is_refused_first_and_a_large_one_reported(
    make_config, new_network, monkeypatch, capsys
) -> None:
    config = make_config("protocol=ten_crop", "protocol.side=[36,72]")
    network = new_network(config)
    check_scorable(network, config)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("tencrop.data.sampling.sampler.MAX_PADDED_BYTES", 3 * 72 * 80)
    check_scorable(network, config)
    assert capsys.readouterr().err.startswith("protocol.side=72: class"), "and nothing of a side of 36"
    monkeypatch.setattr("tencrop.data.sampling.sampler.MAX_PIXELS", 72 * 80)
    with pytest.raises(UserError, match=r"protocol\.side=72: class.* more than the 5,760 that an image may have"):
        check_scorable(network, config)
    manifest = read_manifest(config.data.root)
    monkeypatch.setattr("tencrop.data.sampling.sampler.MAX_PIXELS", 36 * 40)
    with pytest.raises(UserError, match=r"short_side=36: class.* more than the 1,440 that an image may have"):
        build(config := make_config("training.global_batch=6"), batches=derive_batches(config), manifest=manifest)


def test_a_process_that_printed_its_error_causes_no_traceback(make_config, make_task, monkeypatch) -> None:
    """A process whose store is truncated exits with code 2 and without an exception."""

    def spawn(*_: object, **__: object) -> None:
        raise mp.ProcessExitedException("exited", 0, 123, 2)

    task, network = make_task(make_config("hardware.devices=2"))
    monkeypatch.setattr(mp, "spawn", spawn)
    with pytest.raises(SystemExit, match="2"):
        score_split(task, network)


def _waiting(rank: int, task: object, num_ranks: int, folder: Path, messages: object) -> None:
    (folder / f"{rank}.partial").write_text(str(os.getpid()))
    (folder / f"{rank}.partial").rename(folder / f"{rank}.pid")
    time.sleep(3600)


def test_ctrl_c_ends_the_started_processes(monkeypatch, tmp_path) -> None:
    def interrupt() -> None:
        while len(list(tmp_path.glob("*.pid"))) < 2:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(inference, "_process", _waiting)
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        inference._spawn_and_join(
            stand_in(ScoringTask), 2, tmp_path, multiprocessing.get_context("spawn").SimpleQueue()
        )
    for path in tmp_path.glob("*.pid"):
        while _is_alive(path.read_text()):  # else the time limit of the tests
            time.sleep(0.1)


def _is_alive(process: str) -> bool:
    try:
        return Path("/proc", process, "stat").read_text().split()[2] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
