"""The two loaders give the same samples: the same bytes where the store keeps the original's pixels."""

import gc
import io
import multiprocessing
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tencrop.config import Augmentation, Pca, Protocol, UserError
from tencrop.data.augmentation.plan import evaluation_plan, training_plan
from tencrop.data.loading.loader import Loader
from tencrop.data.loading.reference import TorchLoader, resize
from tencrop.data.native.decoder import FILTERS
from tencrop.data.preparation.prepare import prepare
from tencrop.data.sampling.sampler import epoch_order, evaluation_batches, training_positions
from tencrop.data.store.beton import RAW
from tencrop.data.store.manifest import open_split

CROPS: dict[str, Callable[..., Augmentation]] = {
    "random_resized": partial(Augmentation, "random_resized", area=[0.08, 1.0], aspect=[3 / 4, 4 / 3]),
    "random": partial(Augmentation, "random", side=[32, 48], region="square"),
    "none": partial(Augmentation, "none"),
}


def training(split, *, crop="random_resized", filter="bicubic"):
    augmentation = CROPS[crop](size=32, filter=filter, flip=0.5, pca=Pca(0.1, "dataset"))
    positions = training_positions(split.num_samples // 6, global_batch=6, micro_batch=3, rank=0, num_ranks=1)
    plan = partial(training_plan, stored_sizes=split.stored_sizes, augmentation=augmentation, seed=3)
    return {
        "split": split,
        "batch_sampler": lambda epoch: epoch_order(np.arange(split.num_samples), seed=3, epoch=epoch)[positions],
        "plan": lambda index, epoch: plan(index, epoch=epoch),
        "filter": filter,
    }


def evaluation(split):
    protocol = Protocol("ten_crop", side=40, size=32, region="whole", filter="bilinear", average="softmax")
    parts = evaluation_batches(np.arange(split.num_samples), micro_batch=5, rank=0, num_ranks=1)
    plan = partial(evaluation_plan, stored_sizes=split.stored_sizes, protocol=protocol)
    return {
        "split": split,
        "batch_sampler": lambda _: parts,
        "plan": lambda index, _: plan(index),
        "filter": "bilinear",
    }


def fields(batch) -> dict:
    """All arrays of a batch by name, the parameters of its transforms included."""
    return {name: value for name, value in (batch._asdict() | batch.params).items() if name != "params"}


def pairs(arguments, num_threads=0):
    """The images of both loaders, batch by batch; asserts that everything but the pixels is equal."""
    with Loader(**arguments, num_threads=1) as loader, TorchLoader(**arguments, num_threads=num_threads) as reference:
        assert loader.num_batches(0) == reference.num_batches(0)
        for ours, theirs in zip(loader.batches(0), reference.batches(0), strict=True):
            expected = fields(theirs)
            for name, value in fields(ours).items():
                assert type(value) is type(expected[name]), name
                assert name == "images" or np.array_equal(value, expected[name]), name
            assert ours.images.shape == theirs.images.shape
            yield ours.images, theirs.images


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("filter", ["bilinear", "bicubic", "box", "nearest"])
def test_original_jpegs_give_the_same_bytes(prepared_photos, crop, filter):
    """Color, grayscale, progressive, every subsampling; CMYK and PNG, which the store keeps as RGB."""
    split = open_split(prepared_photos, "train")
    assert sum(torch.equal(*images) for images in pairs(training(split, crop=crop, filter=filter))) == 8


def test_evaluation_gives_the_same_bytes(prepared_photos):
    assert all(torch.equal(*images) for images in pairs(evaluation(open_split(prepared_photos, "val"))))


def test_raw_stores_give_the_same_bytes_even_when_resized(photo_folder, data_config, tmp_path):
    root = prepare(data_config(photo_folder, tmp_path / "raw", mode="raw", short_side=48), workers=1, progress=False)
    split = open_split(root, "train")
    assert split.stored_sizes.min() <= 48
    assert all(torch.equal(*images) for images in pairs(training(split)))


def test_the_digits_give_the_same_bytes(prepared_digits):
    """The raw pixels in the store equal those that the source generates in memory."""
    split = open_split(prepared_digits, "val")
    assert all(torch.equal(*images) for images in pairs(evaluation(split)))


def test_a_re_encoded_store_is_close(photo_folder, data_config, tmp_path):
    """Resized stores hold JPEGs of quality 95 with halved chroma, so pixels differ by that encoding: by 1.8 gray
    levels on average over these small photographs (measured here), where unrelated crops differ by 92."""
    root = prepare(data_config(photo_folder, tmp_path / "small", short_side=48), workers=1, progress=False)
    differences = [
        (ours.float() - theirs.float()).abs().mean() for ours, theirs in pairs(training(open_split(root, "train")))
    ]
    assert 0 < np.mean(differences) < 3


STORES: dict[str, dict[str, int | str]] = {
    "original bytes": {},
    "short side": {"short_side": 48},
    "long side": {"max_side": 90},
    "raw": {"mode": "raw"},
}


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("crop", CROPS)
def test_pixels_equal_pillows_of_the_stored_bytes(photo_folder, data_config, tmp_path, store, crop):
    """For every kind of store and every filter, the crop equals Pillow's of the planned box, bit for bit."""
    config = data_config(photo_folder, tmp_path / "root", **STORES[store])
    split = open_split(prepare(config, workers=1, progress=False), "train")
    for filter in FILTERS:
        arguments = training(split, crop=crop, filter=filter)
        with Loader(**arguments, num_threads=1) as loader:
            for batch in loader.batches(0):
                for image, index, box, flip in zip(batch.images, batch.index, batch.boxes, batch.flips, strict=True):
                    top, left, height, width = box.tolist()
                    stored = Image.fromarray(stored_pixels(split, int(index))[top : top + height, left : left + width])
                    expected = np.asarray(resize(stored, 32, 32, filter))
                    assert np.array_equal(image, expected[:, ::-1] if flip else expected), split.names(int(index))


def stored_pixels(split, index) -> np.ndarray:
    payload = split.beton.payload(index)
    if split.beton.modes[index] == RAW:
        return payload.reshape(*split.stored_sizes[index], 3)
    return np.asarray(Image.open(io.BytesIO(payload.tobytes())).convert("RGB"))


def test_worker_processes_change_nothing(prepared_photos):
    state = torch.get_rng_state()
    split = open_split(prepared_photos, "train")
    assert all(torch.equal(*images) for images in pairs(training(split), num_threads=2))
    assert torch.equal(torch.get_rng_state(), state)


def test_resuming_equals_not_stopping(prepared_photos):
    arguments = training(open_split(prepared_photos, "train"))
    loader = TorchLoader(**arguments, num_threads=0)
    whole = [batch.images for batch in loader.batches(0)]
    rest = [batch.images for batch in loader.batches(0, 3)]
    assert len(rest) == len(whole) - 3 and all(map(torch.equal, rest, whole[3:]))


@pytest.mark.parametrize("way", ["close", "next iteration", "forget"])
def test_workers_of_an_unfinished_iteration_end(prepared_photos, way):
    """They end at once, not when the garbage collector runs, which may be never."""
    before = set(multiprocessing.active_children())
    gc.disable()
    try:
        loader = TorchLoader(**training(open_split(prepared_photos, "train")), num_threads=2)
        iterator = loader.batches(0)
        next(iterator)
        workers = set(multiprocessing.active_children()) - before
        assert len(workers) == 2
        if way == "close":
            loader.close()
        elif way == "next iteration":
            assert len(list(loader.batches(0))) == loader.num_batches(0)
        else:
            del iterator
        assert not any(Path(f"/proc/{worker.pid}").exists() for worker in workers)
    finally:
        gc.enable()


@pytest.mark.parametrize("num_threads", [0, 1])
def test_a_missing_original_is_a_user_error(photo_folder, data_config, tmp_path, num_threads):
    source = shutil.copytree(photo_folder, tmp_path / "source")
    root = prepare(data_config(source, tmp_path / "root"), workers=1, progress=False)
    arguments = training(open_split(root, "train"))
    (source / "train" / "flower" / "03.JPEG").unlink()
    with pytest.raises(UserError, match=r"03\.JPEG") as caught:
        list(TorchLoader(**arguments, num_threads=num_threads).batches(0))
    assert "Traceback" not in str(caught.value)


def test_a_damaged_original_is_a_user_error(photo_folder, data_config, tmp_path):
    source = shutil.copytree(photo_folder, tmp_path / "source")
    root = prepare(data_config(source, tmp_path / "root"), workers=1, progress=False)
    path = source / "train" / "flower" / "03.JPEG"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=r"flower/03\.JPEG is no longer the file that was prepared"):
        list(TorchLoader(**training(open_split(root, "train")), num_threads=0).batches(0))
