"""Stock ffcv's loader follows our plan: the same samples, boxes and flips as the other loaders, but its own pixels.

numba compiles about 3 s for each loader, so each test reuses one as often as it can.
"""

import importlib.util
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tencrop.cli.choices import CONF
from tencrop.config import Augmentation, Pca, Protocol, UserError
from tencrop.data.augmentation.plan import evaluation_plan, training_plan
from tencrop.data.loading.ffcv_loader import FfcvLoader, ffcv_decoder, torch_threads_kept
from tencrop.data.loading.loader import Loader
from tencrop.data.loading.reference import TorchLoader
from tencrop.data.native.decoder import DecodeError
from tencrop.data.preparation.prepare import prepare
from tencrop.data.sampling.sampler import epoch_order, training_positions
from tencrop.data.store.manifest import open_split

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="ffcv is not installed")


def training(split, *, size=32, crop="random_resized"):
    augmentation = Augmentation(crop=crop, size=size, filter="bilinear", flip=0.5, pca=Pca(0.1, "dataset"))
    if crop == "random_resized":
        augmentation.area, augmentation.aspect = [0.08, 1.0], [3 / 4, 4 / 3]
    positions = training_positions(split.num_samples // 6, global_batch=6, micro_batch=3, rank=0, num_ranks=1)
    plan = partial(training_plan, stored_sizes=split.stored_sizes, augmentation=augmentation, seed=3)
    return {
        "split": split,
        "batch_sampler": lambda epoch: epoch_order(np.arange(split.num_samples), seed=3, epoch=epoch)[positions],
        "plan": lambda index, epoch: plan(index, epoch=epoch),
        "filter": "bilinear",
        "hash_pixels": True,
    }


def epoch(loader, number: int = 0, first: int = 0) -> list:
    return [batch._replace(images=batch.images.clone()) for batch in loader.batches(number, first)]


def fields(batch) -> dict:
    """All arrays of a batch by name, the parameters of its transforms included."""
    return {name: value for name, value in (batch._asdict() | batch.params).items() if name != "params"}


def assert_same_but_pixels(one, other):
    for ours, theirs in zip(one, other, strict=True):
        assert ours.images.shape == theirs.images.shape
        expected = fields(theirs)
        for name, value in fields(ours).items():
            assert type(value) is type(expected[name]), name
            assert name in ("images", "hashes") or np.array_equal(value, expected[name]), name
        assert np.array_equal(ours.hashes[:, :2], theirs.hashes[:, :2])


def differences(one, other) -> np.ndarray:
    pairs = zip(one, other, strict=True)
    return np.concatenate([np.ravel(np.abs(a.images.numpy().astype(int) - b.images.numpy())) for a, b in pairs])


def test_three_loaders_give_the_same_samples_and_ffcv_pixels_of_its_own(prepared_photos):
    """Boxes of 20 pixels and more of small photographs, resized to 32. Our resize is an antialiased triangle; ffcv's
    area resize interpolates bilinearly where a box is enlarged and averages an area where it is reduced. Measured
    here: they differ by 1.7 gray levels on average and by at most 11 in 99% of the pixels; unrelated crops by 90."""
    arguments = training(open_split(prepared_photos, "train"))
    with torch_threads_kept():
        torch.set_num_threads(3)
        with FfcvLoader(**arguments, num_threads=1) as loader:
            first, second = epoch(loader), epoch(loader, 1)
            with ThreadPoolExecutor(1) as new_thread:
                assert torch.get_num_threads() == new_thread.submit(torch.get_num_threads).result() == 3
            resumed = epoch(loader, 0, 3)
    ours, reference = Loader(**arguments, num_threads=1), TorchLoader(**arguments, num_threads=0)
    assert_same_but_pixels(first, reference.batches(0))
    expected = [epoch(ours), epoch(ours, 1)]
    for batches, those_of_ours in zip((first, second), expected, strict=True):
        assert_same_but_pixels(batches, those_of_ours)
        difference = differences(batches, those_of_ours)
        assert 0 < difference.mean() < 3 and np.percentile(difference, 99) < 20
    assert len(resumed) == len(first) - 3
    for batch, again in zip(first[3:], resumed, strict=True):
        assert all(map(np.array_equal, fields(batch).values(), fields(again).values()))


def test_images_that_are_not_resized_are_equal_bit_for_bit(prepared_digits):
    """Raw images at their stored size, so only boxes, flips and slots matter. With one worker and with two."""
    arguments = training(open_split(prepared_digits, "val"), crop="none")
    with Loader(**arguments, num_threads=1) as loader:
        expected = epoch(loader)
    assert any(batch.flips.any() for batch in expected)
    for num_threads in range(1, 1 + min(2, ffcv_decoder().MAX_THREADS)):
        with FfcvLoader(**arguments, num_threads=num_threads) as loader:
            for batch, theirs in zip(expected, epoch(loader), strict=True):
                assert all(map(np.array_equal, fields(batch).values(), fields(theirs).values()))


def test_evaluation_takes_images_of_any_size_in_batches_of_any_length(coordinate_store):
    """Images are padded with zeros, also if their memory held a larger batch before."""
    split = open_split(coordinate_store([(40, 20), (30, 90), (33, 33), (20, 20), (64, 9), (21, 22), (9, 64)]), "train")
    protocol = Protocol("center", side=None, size=8, region="whole", filter="bilinear", average="softmax")
    parts = [np.array([0, 1, 2]), np.array([3]), np.array([4, 5]), np.array([6])]
    plan = partial(evaluation_plan, stored_sizes=split.stored_sizes, protocol=protocol)
    arguments = {"split": split, "batch_sampler": lambda _: parts, "plan": lambda i, _: plan(i), "filter": "bilinear"}
    with Loader(**arguments, num_threads=1) as ours, FfcvLoader(**arguments, num_threads=1) as theirs:
        expected = epoch(ours)
        for _ in range(3):
            for batch, other in zip(expected, epoch(theirs), strict=True):
                assert all(map(np.array_equal, fields(batch).values(), fields(other).values()))
    with FfcvLoader(**{**arguments, "batch_sampler": lambda _: []}, num_threads=1) as nothing:
        assert epoch(nothing) == []


def test_a_damaged_image_is_named_and_closing_ends_the_threads(photo_folder, data_config, tmp_path):
    root = prepare(data_config(photo_folder, tmp_path), workers=1, progress=False)
    before = set(threading.enumerate())
    split = open_split(root, "train")
    sample = int(np.flatnonzero(split.beton.modes == 0)[5])
    start, size = int(split.beton.pointers[sample]), int(split.beton.payload_bytes[sample])
    arguments = training(split)
    with FfcvLoader(**arguments, num_threads=1) as loader:
        whole = epoch(loader)
        with open(root / "train.beton", "r+b") as file:
            file.seek(start + size // 2)
            file.write(bytes(size - size // 2))
        with pytest.raises(DecodeError, match=rf"{split.names(sample)} \(sample {sample}\) is damaged"):
            epoch(loader, 1)
        iterator = loader.batches(0, len(whole) - 1)
        next(iterator)
        next(loader.batches(0))  # ends the other iteration
    assert set(threading.enumerate()) == before
    assert len(whole) == 8


def test_more_threads_than_numba_has_are_refused(prepared_digits):
    most = ffcv_decoder().MAX_THREADS
    with pytest.raises(UserError, match=rf"hardware.workers={most + 1}: .* set hardware.workers={most}"):
        FfcvLoader(**training(open_split(prepared_digits, "val")), num_threads=most + 1)


IMPORT = """
import torch
torch.set_num_threads(3)
from tencrop.data.loading.ffcv_loader import ffcv_decoder
ffcv_decoder()
assert torch.get_num_threads() == 3
"""


def test_importing_ffcv_keeps_the_number_of_torch_threads():
    subprocess.run([sys.executable, "-c", IMPORT], check=True)


WITHOUT = """
import runpy, sys
sys.modules["{module}"] = None
sys.argv = ["train.py", "experiment=lenet5_digits", "data.loader=ffcv", "data.root={root}", "hardware=cpu"]
runpy.run_path("{script}", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("module", "words"), [("ffcv", "ffcv is not installed; install it"), ("numba", "ffcv cannot be imported (")]
)
def test_a_missing_or_broken_ffcv_is_an_error_with_the_install_command(prepared_digits, tmp_path, module, words):
    program = WITHOUT.format(module=module, root=prepared_digits, script=CONF.parent / "train.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3] / "src")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith(f"error: data.loader=ffcv: {words}"), done.stderr
    assert "pip install 'tencrop[ffcv]'" in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
