"""The probe of plan=true times the recipe's own steps, and writes nothing."""

from itertools import pairwise

import pytest
import torch

from tencrop.config import UserError, derive_batches
from tencrop.data.store.manifest import read_manifest
from tencrop.training import probe as probing
from tencrop.training.classifier import Classifier
from tencrop.training.probe import Stopwatch, Timing, probe
from training import runs


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(probing, "WARM_UP_STEPS", 2)
    monkeypatch.setattr(probing, "MAX_STEPS", 5)
    yield
    torch.use_deterministic_algorithms(False)


def timing(monkeypatch, step_times, **limits):
    """What a Stopwatch says of steps that take these seconds, by a clock of ours."""
    now = 0.0
    monkeypatch.setattr(probing.time, "perf_counter", lambda: now)
    for name, value in limits.items():
        monkeypatch.setattr(probing, name, value)
    stopwatch = Stopwatch()
    for seconds in step_times:
        now += seconds
        if stopwatch.lap():
            return stopwatch.timing
    raise AssertionError("the stopwatch did not stop")


def test_the_warm_up_is_not_timed_and_the_rest_is_bounded(monkeypatch):
    short = timing(monkeypatch, [1.0] * 6 + [0.02] * 200)
    assert short.seconds == pytest.approx(0.02) and short.num_steps == 100
    assert timing(monkeypatch, [0.1] * 6 + [3.0] * 200) == Timing(3.0, 4)  # 12 s, the first time above 10
    assert timing(monkeypatch, [60.0] * 3) == Timing(60.0, 1)  # a slow step is both warm-up and measurement


def probed(root, *overrides):
    config = runs.recipe(root, *overrides)
    return probe(config, batches=derive_batches(config), manifest=read_manifest(root))


def test_the_recipe_is_measured_and_nothing_is_written(short, prepared_photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen: list[list] = []
    original = Classifier.training_step

    def training_step(self, batch, batch_idx):
        if not self.global_step and not batch_idx:
            seen.append([])
        seen[-1].append(tuple(batch.index))
        original(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", training_step)
    measured = probed(prepared_photos)
    # 18 images, 4 epochs, 3 steps an epoch of 3 micro-batches: 7 steps are measured, over several epochs
    assert (measured.steps_per_epoch, measured.total_steps) == (3, 12)
    assert [timed.num_steps for timed in (measured.loader, measured.step, measured.both)] == [5, 5, 5]
    assert all(timed.seconds > 0 for timed in (measured.loader, measured.step, measured.both))
    alone, both = seen
    assert len(alone) == len(both) == 21
    assert set(alone) == {both[0]} and all(one != other for one, other in pairwise(both))
    assert measured.peak_memory_bytes > 1e8
    assert not list(tmp_path.iterdir())


def test_a_recipe_shorter_than_the_measurement(short, prepared_photos):
    measured = probed(prepared_photos, "training.max_steps=1")
    assert measured.total_steps == 1 and measured.both.num_steps == 5


def test_progressive_resizing_is_measured_at_the_full_size(short, prepared_photos, monkeypatch):
    sizes, original = set(), Classifier.training_step

    def training_step(self, batch, batch_idx):
        sizes.add(batch.images.shape[1])
        original(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", training_step)
    progressive = {"start_size": 16, "start_ramp": 2, "end_ramp": 3, "multiple": 16}
    probed(prepared_photos, *(f"augmentation.progressive.{key}={value}" for key, value in progressive.items()))
    assert sizes == {32}


def test_one_of_several_devices_is_measured_with_its_share(short, prepared_photos, monkeypatch):
    sizes = []
    original = Classifier.training_step

    def training_step(self, batch, batch_idx):
        sizes.append(len(batch.index))
        original(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", training_step)
    options = ("training.global_batch=8", "hardware.devices=2", "hardware.max_micro_batch=null")
    measured = probed(prepared_photos, *options)
    assert set(sizes) == {4} and len(sizes) == 2 * 7
    assert measured.steps_per_epoch == 2


def test_out_of_memory_is_explained(short, prepared_photos, monkeypatch):
    def fail(self, network, inputs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Classifier, "predict", fail)
    with pytest.raises(UserError, match=r"hardware.max_micro_batch=2: the first step ran out of memory"):
        probed(prepared_photos)
