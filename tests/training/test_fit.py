"""A run that is killed, interrupted or distributed over processes ends like an undisturbed one."""

import copy
import json
import math
import os
import runpy
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from tencrop.config import UserError, derive_batches
from tencrop.data.store.manifest import read_manifest
from tencrop.models.factory import build_model
from tencrop.training import monitors
from tencrop.training.checkpoints import read_checkpoint
from tencrop.training.fit import build, fit
from training import runs

KILL, TERM, USR1 = signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1


def same_weights(one, other) -> bool:
    return all(one.result()[key] == other.result()[key] for key in ("weights_sha256", "ema_sha256"))


def best_of(run) -> list:
    facts = read_checkpoint(run.best)["tencrop"]
    return [facts["step"], facts["weights_sha256"], facts["ema_sha256"], facts["best"], facts["plateau"]]


FAULTS = {
    "before the first checkpoint": ("null", {"signal_number": KILL, "at_step": 1}),
    "within an epoch, not having saved": ("null", {"signal_number": KILL, "at_step": 5}),
    "within an epoch, having saved": ("2", {"signal_number": KILL, "at_step": 5}),
    "after the last step of an epoch": ("2", {"signal_number": KILL, "at_step": 6}),
    "in the first validation": ("null", {"signal_number": KILL, "place": "validation", "occurrence": 2}),
    "in a later validation": ("2", {"signal_number": KILL, "place": "validation", "occurrence": 8}),
    "writing the first checkpoint": ("2", {"signal_number": KILL, "place": "write", "occurrence": 1}),
    "writing a later checkpoint": ("null", {"signal_number": KILL, "place": "write", "occurrence": 4}),
    "between writing and renaming": ("2", {"signal_number": KILL, "place": "rename", "occurrence": 5}),
    "asked within an epoch": ("null", {"signal_number": TERM, "at_step": 4}),
    "asked by SLURM": ("2", {"signal_number": USR1, "at_step": 8}),
    "asked after the last step of an epoch": ("null", {"signal_number": TERM, "at_step": 6}),
    "asked in a validation": ("null", {"signal_number": TERM, "place": "validation", "occurrence": 5}),
    "asked after the last step": ("2", {"signal_number": TERM, "at_step": 12}),
}


@pytest.mark.parametrize(("every", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_resumed_run_ends_like_an_uninterrupted_one(train, uninterrupted, every, fault):
    stopped = train("run", f"checkpoint_every_steps={every}", fault=fault)
    assert stopped.exit_code == (-KILL if fault["signal_number"] == KILL else 75)
    if stopped.last.exists():
        read_checkpoint(stopped.last)  # a kill never leaves a broken one
    run = train("run", f"checkpoint_every_steps={every}")
    assert run.exit_code == 0
    assert same_weights(run, uninterrupted)
    assert run.rows() == uninterrupted.rows()
    assert best_of(run) == best_of(uninterrupted)


def test_a_run_may_be_stopped_many_times(train, uninterrupted):
    for step in (2, 3, 5, 7, 10):
        assert train("run", fault={"signal_number": TERM, "at_step": step}).exit_code == 75
    assert train("run").exit_code == 0
    run = train("run")
    assert same_weights(run, uninterrupted) and run.rows() == uninterrupted.rows()


def test_the_same_command_twice_gives_the_same_weights_and_then_nothing_to_do(train, uninterrupted):
    run = train("run")
    assert run.result()["message"] == "complete" and same_weights(run, uninterrupted)
    written = run.last.stat().st_mtime_ns
    run = train("run")
    assert run.result()["message"] == "already complete" and same_weights(run, uninterrupted)
    assert run.exit_code == 0 and run.last.stat().st_mtime_ns == written


TENSORFLOW = ["augmentation.randaugment.source=tf", "augmentation.randaugment.num_ops=2", "training.epochs=2"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["augmentation=random_crop", "short_side=256", "normalization.mean=image"],
        ["augmentation=random_sized_tf", "augmentation.randaugment.magnitude=10", "normalization.mean=image_center"],
    ],
)
def test_a_run_with_the_augmentations_of_other_code_resumes(train, overrides, prepared_photos):
    """The mean image or its center, which the checkpoint holds, and TensorFlow's crop and RandAugment."""
    whole = train("whole", *overrides, *TENSORFLOW)
    assert whole.exit_code == 0
    assert train("run", *overrides, *TENSORFLOW, fault={"signal_number": TERM, "at_step": 4}).exit_code == 75
    resumed = train("run", *overrides, *TENSORFLOW)
    assert same_weights(resumed, whole) and resumed.rows() == whole.rows()
    facts = read_checkpoint(whole.last)["tencrop"]
    is_image = "normalization.mean=image" in overrides
    mean_image = torch.from_numpy(np.load(prepared_photos / "mean_image.npy"))
    center = interpolate(
        mean_image.permute(2, 0, 1)[None], (32, 32), mode="bilinear", antialias=True
    )  # 32 of 32 pixels
    assert torch.equal(facts["mean_image"], mean_image if is_image else center[0].permute(1, 2, 0))
    assert not same_weights(whole, train("other", *overrides, *TENSORFLOW, "normalization.mean=dataset"))


def test_another_seed_gives_other_weights(train, uninterrupted):
    assert not same_weights(train("run", "seed=1"), uninterrupted)


def test_an_interrupted_run_stops_at_the_next_step(train):
    run = train("run", fault={"signal_number": TERM, "at_step": 4})
    facts = read_checkpoint(run.last)["tencrop"]
    assert facts["step"] == 4 and not facts["is_complete"]
    assert run.result()["status"] == "interrupted" and run.result()["step"] == 4


def test_a_nan_loss_stops_and_names_the_step(train):
    run = train("run", "checkpoint_every_steps=2", nan_at_step=5)
    assert run.exit_code == 1
    message = run.result()["message"]
    assert message.startswith("the loss is NaN or infinite at step 5;") and "last.ckpt is from before" in message
    checkpoint = read_checkpoint(run.last)
    assert checkpoint["tencrop"]["step"] == 4
    assert all(torch.isfinite(value).all() for value in checkpoint["state_dict"].values())


def test_nonfinite_weights_are_not_saved(train):
    run = train("run", "optimizer.lr=1e30", "training.clip_grad_norm=null", "log_every_steps=100")
    assert run.exit_code == 1 and not run.last.exists()
    assert "there is no checkpoint yet" in run.result()["message"]


def test_a_checkpoint_of_other_data_is_refused(train, prepared_photos, tmp_path):
    train("run", fault={"signal_number": TERM, "at_step": 2})
    config = runs.recipe(prepared_photos, "training.minival_fraction=0.5")  # 12 images where there were 18
    built = build(config, batches=derive_batches(config), manifest=read_manifest(prepared_photos))
    with pytest.raises(UserError, match="started for 12 steps, but this data gives 8"):
        fit(*built, run_dir=tmp_path / "run")
    torch.use_deterministic_algorithms(False)  # fit() has switched them on, and it ran in this process


def test_a_checkpoint_of_another_network_is_refused(train, prepared_photos, tmp_path):
    train("run", fault={"signal_number": TERM, "at_step": 2})
    config = runs.recipe(prepared_photos, "model.name=test_resnet")
    built = build(config, batches=derive_batches(config), manifest=read_manifest(prepared_photos))
    with pytest.raises(UserError, match=r"run/checkpoints/last\.ckpt: its weights do not fit test_resnet: missing:"):
        fit(*built, run_dir=tmp_path / "run")
    torch.use_deterministic_algorithms(False)


def test_max_steps_ends_within_an_epoch_and_validates(train):
    run = train("run", "training.max_steps=4")
    assert run.result()["status"] == "complete" and run.result()["step"] == 4
    assert [row["split"] for row in run.rows() if row["step"] == 4] == ["train", "minival"]
    assert train("run", "training.max_steps=4").result()["message"] == "already complete"


# RECIPE has schedule=plateau; the keys of other schedules
NO_PLATEAU = ("schedule.patience=null", "schedule.max_drops=null", "training.clip_grad_norm=null")
BY_STEPS = ("training.epochs=null", "training.steps=7")  # two epochs of 3 steps, and a step
NEWER = {
    "rmsprop_tf": (
        "optimizer=rmsprop_tf", "schedule.name=exponential", "+schedule.decay_epochs=0.7", "schedule.warmup_epochs=1",
        "schedule.warmup_from=0.001", *NO_PLATEAU, *BY_STEPS,
    ),
    "lamb": (
        "optimizer=lamb", "schedule.name=onecycle", "schedule.gamma=null", "+schedule.pct_start=0.4",
        "+schedule.div_factor=25", "+schedule.final_div_factor=100", *NO_PLATEAU, *BY_STEPS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("words", NEWER.values(), ids=NEWER)
def test_optimizers_of_timm_and_a_budget_in_steps_resume_like_an_uninterrupted_run(train, words):
    whole = train("whole", *words)
    assert whole.exit_code == 0 and whole.result()["step"] == 7
    assert [(row["step"], row["split"]) for row in whole.rows() if row["split"] == "minival"] == [
        (3, "minival"), (6, "minival"), (7, "minival"),
    ]  # fmt: skip
    assert train("run", *words, fault={"signal_number": TERM, "at_step": 4}).exit_code == 75
    run = train("run", *words)
    assert run.exit_code == 0 and same_weights(run, whole) and run.rows() == whole.rows()


GROWING = [
    "augmentation.progressive.start_size=16", "augmentation.progressive.start_ramp=0",
    "augmentation.progressive.end_ramp=2", "augmentation.progressive.multiple=8", "model.blur_pool=true",
]  # fmt: skip


def test_progressive_resizing_and_blur_pooling_resume_like_an_uninterrupted_run(train, uninterrupted):
    """Crops of 16, 24, 32 and 32 pixels; stopped within the second epoch, and at the end of it. The EMA blurs too."""
    whole = train("whole", *GROWING)
    assert whole.exit_code == 0 and whole.rows() != uninterrupted.rows()
    for at_step in (4, 6):
        assert train("run", *GROWING, fault={"signal_number": TERM, "at_step": at_step}).exit_code == 75
    run = train("run", *GROWING)
    assert run.exit_code == 0 and same_weights(run, whole) and run.rows() == whole.rows()
    state = read_checkpoint(run.last)["state_dict"]
    kernels = {key: state[key] for key in state if key.endswith("blur.kernel")}
    assert {key.partition(".")[0] for key in kernels} == {"model", "ema"}
    assert all(kernel.sum((2, 3)).eq(1).all() for kernel in kernels.values())


def test_a_budget_in_steps_sets_the_schedule_and_max_steps_does_not(train):
    """schedule=poly falls to 0 over the budget: after 2 of 4 steps lr is half, however early the run is stopped."""
    words = ("schedule.name=poly", "schedule.gamma=null", "+schedule.power=1", *NO_PLATEAU, "log_every_steps=1")
    budgets = {
        "steps": ("training.epochs=null", "training.steps=4"),
        "stopped": ("training.epochs=null", "training.steps=4", "training.max_steps=3"),
        "epochs": ("training.epochs=4", "training.max_steps=3"),
    }
    lr = {name: [row.get("lr") for row in train(name, *words, *budgets[name]).rows()] for name in budgets}
    lr = {name: [rate for rate in rates if rate is not None] for name, rates in lr.items()}
    assert lr["steps"] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
    assert lr["stopped"] == pytest.approx([0.01, 0.0075, 0.005])
    assert lr["epochs"] == pytest.approx([0.01 * (1 - step / 12) for step in range(3)])


def test_a_warmup_longer_than_a_budget_in_steps_is_refused(prepared_photos):
    words = ["training.epochs=null", "training.steps=4", "schedule.warmup_epochs=2"]
    config = runs.recipe(prepared_photos, *words)
    with pytest.raises(UserError, match=r"warmup_epochs=2: is longer .*\(training.steps=4, which are 1.33 epochs\)"):
        build(config, batches=derive_batches(config), manifest=read_manifest(prepared_photos))


@pytest.mark.parametrize("changed", [["training.epochs=3"], ["training.max_steps=7"]])
def test_the_last_step_is_always_validated(train, changed):
    run = train("run", "training.evaluate_every_epochs=2", *changed)
    assert run.exit_code == 0
    assert [row["step"] for row in run.rows() if row["split"] == "minival"] == [6, run.result()["step"]]


def test_a_row_counts_every_image_once(uninterrupted):
    rows = uninterrupted.rows()
    assert sum(row["num_images"] for row in rows if row["split"] == "train") == 4 * 18
    assert all(row["num_images"] == 6 for row in rows if row["split"] == "minival")
    assert [row["step"] for row in rows if row["split"] == "train"] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert {row["labels"] for row in rows if row["split"] == "train"} == {"own"}
    digests = [(row["data_digest"], row["pixel_digest"]) for row in rows if row["split"] == "train"]
    assert len(set(digests)) == len(digests)  # test_the_layout_on_devices_... compares them between layouts
    assert all(0 <= row["top1_error"] <= 1 and math.isfinite(row["loss"]) for row in rows)


def test_the_layout_on_devices_does_not_change_the_result(train):
    """Accumulation on one device, one large batch, and two devices agree in float64, running statistics included."""
    options = ["model.bn_group=4", "training.global_batch=16", "training.epochs=6"]
    options += ["augmentation=deit", "augmentation.mixing.mix_group=2"]  # all randomness of images and groups
    layouts: dict[str, tuple[int, tuple[str, ...]]] = {
        "accumulated": (1, ("hardware.max_micro_batch=4",)),
        "whole": (1, ("hardware.max_micro_batch=null",)),
        "two processes": (2, ("hardware.devices=2", "hardware.max_micro_batch=null")),
        "two that accumulate": (2, ("hardware.devices=2", "hardware.max_micro_batch=4")),
    }
    states, rows = {}, {}
    for name, (num_ranks, layout) in layouts.items():
        run = train(name, *options, *layout, num_ranks=num_ranks, float64=True)
        assert run.exit_codes == [0] * num_ranks
        states[name], rows[name] = read_checkpoint(run.last)["state_dict"], run.rows()
        assert all(run.result(rank)["weights_sha256"] == run.result()["weights_sha256"] for rank in range(num_ranks))
        assert all(run.result(rank)["ema_sha256"] == run.result()["ema_sha256"] for rank in range(num_ranks))
    assert {row["labels"] for row in rows["whole"] if row["split"] == "train"} == {"heavier"}
    for name in list(layouts)[1:]:
        assert_close(states[name], states["accumulated"], rows[name], rows["accumulated"])


ELASTIC = (
    "+model.kwargs.drop_path_rate=0.2", "model.bn_group=2", "training.global_batch=8", "training.precise_bn=16",
    "training.epochs=3", "log_every_steps=1", "image_size=64", "short_side=64",
)  # fmt: skip


def test_a_run_may_resume_on_other_numbers_of_devices(train, prepared_photos):
    """One, two, four and one process: the same samples, draws and groups, so the same result in float64.

    With dropout, drop-path, BatchNorm and its exact statistics at the end, EMA and plateau.
    """
    config = runs.recipe(prepared_photos, *ELASTIC, "hardware.devices=2")
    _, classifier = build(config, batches=derive_batches(config), manifest=read_manifest(prepared_photos))
    assert classifier.draws == "global"
    whole = train("whole", *ELASTIC, "hardware.max_micro_batch=null", float64=True)
    for step, num_ranks in ((1, 1), (3, 2), (4, 4), (6, 1)):
        layout = (f"hardware.devices={num_ranks}", "hardware.max_micro_batch=4")
        fault = None if step == 6 else {"signal_number": TERM, "at_step": step}
        run = train("run", *ELASTIC, *layout, num_ranks=num_ranks, float64=True, fault=fault)
        assert run.exit_code == (0 if step == 6 else 75) and read_checkpoint(run.last)["tencrop"]["step"] == step
    state, expected = (read_checkpoint(one.last)["state_dict"] for one in (run, whole))
    assert_close(state, expected, run.rows(), whole.rows())


def assert_close(state, expected, rows, expected_rows):
    """Compare weights and running statistics (raw and EMA) and all rows, up to float64 rounding."""
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=1e-9, atol=1e-11, msg=key)
    for one, other in zip(copy.deepcopy(rows), copy.deepcopy(expected_rows), strict=True):
        for name in ("split", "weights", "labels", "data_digest", "pixel_digest"):
            assert one.pop(name, None) == other.pop(name, None)
        assert one == pytest.approx(other, rel=1e-9)


def test_two_processes_are_interrupted_together_and_continue(train):
    options = ("hardware.devices=2", "hardware.max_micro_batch=null", "training.global_batch=8")
    whole = train("whole", *options, num_ranks=2)
    # only rank 1 gets the signal; the ranks agree at the next multiple of log_every_steps
    stopped = train("run", *options, num_ranks=2, fault={"signal_number": TERM, "at_step": 3, "rank": "1"})
    assert stopped.exit_code == 75
    assert read_checkpoint(stopped.last)["tencrop"]["step"] == 4
    run = train("run", *options, num_ranks=2)
    assert run.exit_codes == [0, 0] and run.rows() == whole.rows()
    for rank in (0, 1):
        assert run.result(rank)["weights_sha256"] == whole.result(0)["weights_sha256"]


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_neither_checkpoints_nor_an_interruption_change_the_weights_on_any_rank(train, num_ranks):
    """Bit for bit on every rank, including running statistics and their EMA."""
    options = [f"hardware.devices={num_ranks}", "training.global_batch=8"]  # 2 steps an epoch
    options += ["training.epochs=3", "log_every_steps=1"]
    whole = train("whole", *options, num_ranks=num_ranks)
    assert any("running_mean" in name for name in read_checkpoint(whole.last)["state_dict"])
    runs = [train(f"every {n}", *options, f"checkpoint_every_steps={n}", num_ranks=num_ranks) for n in (1, 5)]
    fault = {"signal_number": USR1, "at_step": 3, "rank": str(num_ranks - 1)}  # within an epoch; one rank is asked
    stopped = train("stopped", *options, num_ranks=num_ranks, fault=fault)
    assert stopped.exit_code == 75 and read_checkpoint(stopped.last)["tencrop"]["step"] == 3
    runs.append(train("stopped", *options, num_ranks=num_ranks))
    for run in (whole, *runs):
        assert run.exit_codes == [0] * num_ranks
        assert run.rows() == whole.rows()
        for rank in range(num_ranks):
            for weights in ("weights_sha256", "ema_sha256"):
                assert run.result(rank)[weights] == whole.result()[weights], (run.folder.name, rank, weights)


def test_auxiliary_losses_have_their_weight_in_training(composed, prepared_photos, tmp_path):
    """Three untrained classifiers give a loss of (1 + 2 * 0.3) ln K; evaluation uses only the first."""
    size = ["image_size=80", "short_side=80", "+model.kwargs.img_size=80", "+model.kwargs.width=0.0625"]
    steps = ["training.global_batch=8", "training.max_steps=1", "log_every_steps=1", "optimizer.weight_decay=0"]
    quick = ["training.precision=fp32", "hardware=cpu", "tracker=none", f"data.root={prepared_photos}"]
    config = composed("experiment=null", "data=imagefolder", "model=googlenet_2014", *size, *steps, *quick)
    manifest = read_manifest(prepared_photos)
    result = fit(*build(config, batches=derive_batches(config), manifest=manifest), run_dir=tmp_path)
    assert (result.status, result.step) == ("complete", 1)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    loss = {row["split"]: row["loss"] / math.log(len(manifest["classes"])) for row in rows}
    assert 1.5 < loss["train"] < 1.75 and 0.9 < loss["val"] < 1.15
    trained = read_checkpoint(result.checkpoint)["state_dict"]
    torch.manual_seed(config.seed)
    new = build_model(config.model, num_classes=len(manifest["classes"])).state_dict()
    for name in ("heads.inception4a.fc2.weight", "heads.inception4d.fc2.weight", "classifier.fc.weight"):
        assert not torch.equal(trained[f"model.{name}"], new[name])


class Disk:
    """Records in order what is written to disk: rows of metrics.jsonl, its fsyncs, and renames of checkpoints."""

    def __init__(self, monkeypatch):
        self.events: list[str] = []
        self._append, self._fsync, self._replace = monitors.append_row, os.fsync, os.replace
        monkeypatch.setattr(monitors, "append_row", self._on_row)
        monkeypatch.setattr(os, "fsync", self._on_fsync)
        monkeypatch.setattr(os, "replace", self._on_replace)

    def _on_row(self, *arguments):
        self.events.append("row begins")
        digest = self._append(*arguments)
        self.events.append("row")
        return digest

    def _on_fsync(self, descriptor):
        self.events.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        self._fsync(descriptor)

    def _on_replace(self, source, target):
        self._replace(source, target)
        self.events.append(f"rename {Path(target).name}")


def test_rows_are_synced_before_a_checkpoint_and_at_no_other_step(prepared_photos, tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    config = runs.recipe(prepared_photos, "log_every_steps=1", "checkpoint_every_steps=2", "training.epochs=2")
    manifest = read_manifest(prepared_photos)
    result = fit(*build(config, batches=derive_batches(config), manifest=manifest), run_dir=tmp_path)
    assert result.status == "complete"
    text = " ".join(disk.events).replace("row begins row", "ROW")
    assert "row" not in text.split(), "no row waits for an fsync"
    num_rows, num_checkpoints = text.count("ROW"), text.count("rename last.ckpt")
    assert (num_rows, num_checkpoints) == (6 + 2, 4), "after steps 2 and 4, and after both epochs"
    assert text.count("fsync metrics.jsonl") == text.count(".ckpt.tmp") + 1, "once before each, and at the end"
    for before in text.split("rename last.ckpt")[:-1]:
        after_last_row = before.rpartition("ROW")[2]
        assert after_last_row.startswith(f" fsync metrics.jsonl fsync {tmp_path.name} "), "rows and the file's name"
        assert "fsync last.ckpt.tmp" in after_last_row


ROOT = Path(__file__).parents[2]
ANY_SIZE = ["experiment=null", "model=resnet18_a", "model.bn_group=8"]
UNFIT = {
    "network": (["image_size=64", "short_side=64"], "image_size=64: lenet5_dense does not take images of 64 x 64"),
    "small images": (["image_size=80", "short_side=null", *ANY_SIZE], "short_side=null: china/02.JPEG has"),
    "protocol's size": (["protocol.size=20"], "protocol.size=20: lenet5_dense does not take images of 20 x 20"),
    "protocol's images": (
        ["protocol.side=null", "protocol.size=80", *ANY_SIZE],
        "protocol.side=null: china/02.JPEG has",
    ),
    "protocol's kind": (["protocol=dense"], "lenet5_dense cannot be made fully convolutional"),
    "batch": (["training.global_batch=25"], "training.global_batch=25: there are only 24 images"),
    "training size": (["augmentation.size=28"], "augmentation.size=28: lenet5_dense does not take images of 28 x 28"),
    "growing size": (
        ["training.epochs=3", *GROWING[:4]],
        "augmentation.progressive=16: lenet5_dense does not take images of 16 x 16",
    ),
    "growth": (
        ["training.epochs=null", "training.steps=6", *GROWING[:4], "model=resnet18", "model.bn_group=8"],
        "end_ramp=2: the training ends before an epoch has augmentation.size=32 pixels (training.steps=6, which are 2",
    ),
    "blurring": (["model.blur_pool=true"], "model.blur_pool=true: lenet5_dense has no convolution with a stride"),
    "store": (["data.store.mode=raw"], "data.store.mode=raw: "),
    "single values": (
        ["model=resnet18", "model.bn_group=1"],
        "model.bn_group=1: resnet18 normalizes maps of 1 x 1 at 32 x 32 pixels",
    ),
}


@pytest.mark.parametrize("unfit", UNFIT)
def test_train_refuses_what_does_not_fit_before_anything_is_written(
    unfit, prepared_photos, tmp_path, monkeypatch, capsys
):
    overrides, sentence = UNFIT[unfit]
    small = ["model=lenet5_dense", "image_size=32", "short_side=36", "training.global_batch=8", "model.bn_group=null"]
    words = [
        "data=imagefolder",
        f"data.root={prepared_photos}",
        *small,
        "hardware=cpu",
        "training.epochs=1",
        f"runs={tmp_path}/runs",
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *words, *overrides])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
