"""The loader applies what is planned, whatever its threads, ranks and interruptions; its thread never outlives it."""

import gc
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
import weakref
from functools import partial

import numpy as np
import pytest
import torch

import tencrop.data.store.beton as beton
from tencrop.config import Augmentation, Pca, Protocol
from tencrop.data.augmentation.plan import Plan, evaluation_plan, training_plan
from tencrop.data.loading.loader import Loader, Slot
from tencrop.data.native.decoder import DecodeError
from tencrop.data.sampling.sampler import epoch_order, evaluation_batches, training_positions
from tencrop.data.store.manifest import open_split

SIZES = [(96, 128), (128, 96), (64, 64), (120, 161), (75, 50), (1, 200), (200, 1), (33, 97)]
CROPS = {
    "random_resized": {"area": [0.08, 1.0], "aspect": [3 / 4, 4 / 3]},
    "random": {"side": [32, 48], "region": "whole"},
    "none": {},
}


def training(split, *, crop="random_resized", filter="nearest", size=32, seed=0, **kwargs):
    """Arguments of a loader over the training batches of a split."""
    augmentation = Augmentation(crop=crop, size=size, filter=filter, flip=0.5, pca=Pca(0.1, "dataset"), **CROPS[crop])
    layout = {"global_batch": 4, "micro_batch": 2, "rank": 0, "num_ranks": 1} | kwargs
    positions = training_positions(split.num_samples // layout["global_batch"], **layout)
    plan = partial(training_plan, stored_sizes=split.stored_sizes, augmentation=augmentation, seed=seed)
    return {
        "split": split,
        "batches": lambda epoch: epoch_order(np.arange(split.num_samples), seed=seed, epoch=epoch)[positions],
        "plan": lambda index, epoch: plan(index, epoch=epoch),
        "filter": filter,
    }


def collect(batches) -> list[list[np.ndarray]]:
    """The batches' arrays, copied (their memory is used again)."""
    return [[np.asarray(field).copy() for field in batch] for batch in batches]


def same(first, second) -> bool:
    return len(first) == len(second) and all(
        np.array_equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True)
    )


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tencrop-loader"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    assert not loader_threads()


@pytest.fixture(scope="module")
def coordinates(coordinate_store):
    return open_split(coordinate_store(SIZES), "train")


@pytest.fixture(scope="module")
def photos(prepared_photos):
    return open_split(prepared_photos, "train")


def looked_up(box, size, flip, index) -> np.ndarray:
    """What the nearest filter takes out of a coordinate-coded image, from the box alone: uint8 [h, w, 3]."""
    top, left, height, width = (int(value) for value in box)
    rows = top + ((np.arange(size[0]) + 0.5) * height / size[0]).astype(int)
    columns = left + ((np.arange(size[1]) + 0.5) * width / size[1]).astype(int)
    columns = columns[::-1] if flip else columns
    grid = np.broadcast_arrays(columns[None, :], rows[:, None], np.full((1, 1), index))
    return np.stack(grid, axis=2).astype(np.uint8)


@pytest.mark.parametrize("crop", CROPS)
def test_the_planned_boxes_and_flips_are_applied(coordinates, crop):
    """Every pixel says where in which image it comes from."""
    arguments = training(coordinates, crop=crop)
    num_flipped = num_images = 0
    with Loader(**arguments, num_threads=2) as loader:
        for epoch in range(5):
            for number, batch in enumerate(loader):
                index = arguments["batches"](epoch)[number]
                plan = arguments["plan"](index, epoch)
                assert batch.index.tolist() == index.tolist()
                assert batch.boxes.tolist() == plan.boxes.tolist() and batch.flips.tolist() == plan.flips.tolist()
                for image, i, box, size, flip in zip(batch.images, *plan[:4], strict=True):
                    assert np.array_equal(image.numpy(), looked_up(box, size, flip, i)), (epoch, i, box)
                num_flipped += int(batch.flips.sum())
                num_images += len(batch.index)
    assert num_images == 40 and 5 < num_flipped < 35


def test_the_contract(photos):
    with Loader(**training(photos), num_threads=1) as loader:
        batch = next(iter(loader))
    shapes = {  # what the device computes with is a tensor, what the host reads an array
        "images": (torch.uint8, (2, 32, 32, 3)),
        "labels": (torch.int64, (2,)),
        "index": (np.int64, (2,)),
        "boxes": (np.int32, (2, 4)),
        "flips": (np.bool_, (2,)),
        "sizes": (np.int32, (2, 2)),
        "pca_alphas": (torch.float32, (2, 3)),
        "hashes": (np.int64, (2, 2)),
    }
    assert {name: (getattr(batch, name).dtype, tuple(getattr(batch, name).shape)) for name in shapes} == shapes
    assert all(len(field) == 2 for field in batch)
    assert batch.labels.tolist() == photos.labels[batch.index].tolist()
    assert batch.pca_alphas.abs().sum() > 0


@pytest.mark.parametrize("prefetch", [1, 3])
def test_threads_and_prefetch_change_nothing(photos, prefetch):
    arguments = training(photos, filter="bicubic")
    with Loader(**arguments, num_threads=1) as one, Loader(**arguments, num_threads=2, prefetch=prefetch) as two:
        assert same(collect(one), collect(two))


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_every_number_of_ranks_sees_the_same_global_batches(photos, num_ranks):
    """Images, boxes, flips, colors: the ranks' parts put together are the one process's batch."""
    key = {"global_batch": 4, "filter": "bilinear"}
    with Loader(**training(photos, micro_batch=4, **key), num_threads=1) as loader:
        whole = collect(loader)
    parts = []
    for rank in range(num_ranks):
        part = training(photos, micro_batch=4 // num_ranks, rank=rank, num_ranks=num_ranks, **key)
        with Loader(**part, num_threads=1) as loader:
            parts.append(collect(loader))
    together = [[np.concatenate(arrays) for arrays in zip(*batch, strict=True)] for batch in zip(*parts, strict=True)]
    assert same(whole, together)


def test_two_epochs_differ_and_the_epoch_moves_on(photos):
    with Loader(**training(photos), num_threads=1) as loader:
        first, second = collect(loader), collect(loader)
        assert loader.epoch == 2 and loader.state_dict() == {"epoch": 2, "batch": 0}
        assert not same(first, second)
        loader.epoch = 0
        assert same(collect(loader), first)


@pytest.mark.parametrize("consumed", [1, 5, 11])
def test_resuming_equals_not_stopping(photos, consumed):
    arguments = training(photos)
    with Loader(**arguments, num_threads=2) as loader:
        whole = collect(loader) + collect(loader)
    num_batches = len(arguments["batches"](0))
    with Loader(**arguments, num_threads=2) as stopped:
        iterator = iter(stopped)
        before = [collect([next(iterator)])[0] for _ in range(consumed)]
        state = stopped.state_dict()
        assert state == {"epoch": 0, "batch": consumed}
    decoded = []

    def counting_plan(index, epoch) -> Plan:
        decoded.append(index.tolist())
        return arguments["plan"](index, epoch)

    with Loader(**(arguments | {"plan": counting_plan}), num_threads=1) as resumed:
        resumed.load_state_dict(state)
        assert len(resumed) == num_batches
        after = collect(resumed)
        assert decoded == arguments["batches"](0)[consumed:].tolist()  # nothing is replayed
        assert same(before + after + collect(resumed), whole)


def test_a_resumed_place_is_used_once(photos):
    with Loader(**training(photos), num_threads=1) as loader:
        whole = collect(loader)
        loader.load_state_dict({"epoch": 0, "batch": 3})
        assert same(collect(loader), whole[3:])
        loader.epoch = 0
        assert same(collect(loader), whole)
        loader.load_state_dict({"epoch": 0, "batch": 3})
        loader.epoch = 1
        assert len(collect(loader)) == len(loader)


def test_a_new_iteration_ends_the_last(photos):
    with Loader(**training(photos), num_threads=1) as loader:
        first = iter(loader)
        next(first)
        whole = collect(loader)
        assert len(whole) == len(loader) and len(loader_threads()) == 0
        assert list(first) == []


@pytest.mark.parametrize("way", ["forget the iterator", "forget the loader", "close", "with"])
def test_an_abandoned_iteration_leaves_no_thread(photos, way):
    loader = Loader(**training(photos), num_threads=2)
    iterator = iter(loader)
    next(iterator)
    assert loader_threads()
    if way == "forget the iterator":
        del iterator
    elif way == "forget the loader":
        del iterator, loader
    elif way == "close":
        loader.close()
    else:
        with loader:
            pass
    gc.collect()
    assert not loader_threads()


def test_an_epoch_that_is_over_is_forgotten(photos):
    """The order of an epoch of ImageNet takes 10 MB."""
    arguments, orders = training(photos), []

    def batches(epoch):
        order = arguments["batches"](epoch)
        orders.append(weakref.ref(order))
        return order

    with Loader(**(arguments | {"batches": batches}), num_threads=1) as loader:
        for _ in range(3):
            collect(loader)
        gc.collect()
        assert len(orders) == 3 and [order() is None for order in orders] == [True, True, False]


def test_a_batch_stays_until_the_next_but_one(photos):
    with Loader(**training(photos), num_threads=1, prefetch=1) as loader:
        whole = collect(loader)
        loader.epoch = 0
        previous = None
        for number, batch in enumerate(loader):
            threading.Event().wait(0.005)  # let the thread run ahead as far as it may
            if previous is not None:
                assert np.array_equal(previous.images.numpy(), whole[number - 1][0])
            assert np.array_equal(batch.images.numpy(), whole[number][0])
            previous = batch


def test_evaluation_batches_are_padded_with_zeros(photos):
    protocol = Protocol("ten_crop", side=40, size=32, region="whole", filter="bicubic", average="softmax")
    parts = evaluation_batches(np.arange(photos.num_samples), micro_batch=5, rank=0, num_ranks=1)
    plan = partial(evaluation_plan, stored_sizes=photos.stored_sizes, protocol=protocol)
    seen = []
    with Loader(
        photos, lambda epoch: parts, lambda index, epoch: plan(index), filter="bicubic", num_threads=2
    ) as loader:
        for batch in loader:
            assert tuple(batch.images.shape[1:3]) == tuple(batch.sizes.max(axis=0))
            assert (batch.sizes.min(axis=1) == 40).all()
            for image, (height, width) in zip(batch.images, batch.sizes.tolist(), strict=True):
                assert image[:height, :width].any()
                assert not image[height:].any() and not image[:, width:].any()
            seen += batch.index.tolist()
    assert seen == list(range(photos.num_samples))
    with Loader(photos, lambda epoch: [], lambda index, epoch: plan(index), filter="bicubic", num_threads=2) as empty:
        assert len(empty) == 0 and list(empty) == []


def test_memory_of_an_outsized_image_is_not_kept(coordinates, monkeypatch):
    """A slot for each of five such images would stay for the rest of the evaluation."""
    monkeypatch.setattr("tencrop.data.loading.loader.MAX_PADDED_BYTES", limit := 3 * 80 * 100)
    protocol = Protocol("center", side=None, size=1, region="whole", filter="bicubic", average="softmax")
    parts = [np.array([index]) for index in range(coordinates.num_samples)] * 2
    plan = partial(evaluation_plan, stored_sizes=coordinates.stored_sizes, protocol=protocol)
    with Loader(coordinates, lambda _: parts, lambda index, _: plan(index), filter="bicubic", num_threads=1) as loader:
        seen = [batch.images.shape[1:3] for batch in loader]
        assert [tuple(shape) for shape in seen] == SIZES * 2 and 3 * max(h * w for h, w in SIZES) > limit
        assert all(slot._memory.numel() <= limit for slot in loader._slots)


def test_a_damaged_image_is_named(prepared_photos, tmp_path):
    root = shutil.copytree(prepared_photos, tmp_path / "damaged")
    split = open_split(root, "train")
    sample = 5
    start = int(split.beton.pointers[sample] + split.beton.payload_bytes[sample] // 2)
    with open(split.beton.path, "r+b") as file:
        file.seek(start)
        file.write(b"\xff\xd9" * 20)
    with Loader(**training(split, crop="none"), num_threads=2) as loader:
        for _ in range(2):  # and again: the loader is still of use
            with pytest.raises(DecodeError, match=f"{split.names(sample)}.*sample 5.*damaged"):
                collect(loader)


def test_what_goes_wrong_in_the_thread_is_raised_outside(photos):
    def broken(index, epoch):
        raise RuntimeError("no plan")

    with (
        Loader(**(training(photos) | {"plan": broken}), num_threads=1) as loader,
        pytest.raises(RuntimeError, match="no plan"),
    ):
        next(iter(loader))


def test_torchs_global_state_is_left_alone(photos):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with Loader(**training(photos), num_threads=2) as loader:
        collect(loader)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads


UNFINISHED = """
import sys
sys.path.insert(0, {folder!r})
from test_loader import Loader, open_split, training
loader = Loader(**training(open_split({root!r}, "train"), size=224), num_threads=2)
iterator = iter(loader)
next(iterator)
{end}
"""


@pytest.mark.parametrize(("end", "code"), [("", 0), ("raise ValueError('stop')", 1)])
def test_a_program_can_end_in_the_middle(prepared_photos, request, end, code):
    script = UNFINISHED.format(folder=str(request.path.parent), root=str(prepared_photos), end=end)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=900)
    assert result.returncode == code and "Fatal" not in result.stderr
    assert result.stderr == "" or "ValueError: stop" in result.stderr


def test_pinned_memory_is_filled_again_only_after_its_copy(monkeypatch):
    """The event is recorded when the batch is given up, and waited for before its memory is handed out again."""
    calls = []

    class Event:
        def record(self):
            calls.append("record")

        def synchronize(self):
            calls.append("synchronize")

    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **options: empty(*shape, **options))
    slot = Slot(pin_memory=True)
    for _ in range(2):
        slot.images(2, 3, 4)
        calls.append("filled")
        slot.release()
    assert calls == ["filled", "record", "synchronize", "filled", "record"]


@pytest.mark.parametrize("pin_memory", [True, False])
def test_the_thread_uses_the_consumers_gpu(photos, monkeypatch, pin_memory):
    """Before it pins memory or waits for an event: either would open a context on GPU 0, a new thread's own."""
    threads = {}  # the calls of each thread that makes batches

    def note(*call) -> None:
        if (thread := threading.current_thread()).name == "tencrop-loader":
            threads.setdefault(thread, []).append(call)

    class Event:
        def record(self):
            note("record")

        def synchronize(self):
            note("synchronize")

    def pinned(*shape, pin_memory=False, **options):
        if pin_memory:
            note("pin")
        return empty(*shape, **options)

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", pinned)
    cuda = {"Event": Event, "current_device": lambda: 3, "set_device": partial(note, "set_device")}
    for name, stand_in in cuda.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    with Loader(**training(photos), num_threads=1, prefetch=1, pin_memory=pin_memory) as loader:
        for _ in range(2):
            assert len(list(loader)) == len(loader)
    assert len(threads) == (2 if pin_memory else 0)
    for calls in threads.values():
        assert calls[0] == ("set_device", 3) and len(calls) > 1 and {*calls[1:]} <= {("pin",), ("synchronize",)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_to_a_gpu_are_waited_for(photos):
    """Asynchronous copies behind a long computation still read the right images."""
    arguments = training(photos, filter="bilinear", size=224)
    with Loader(**arguments, num_threads=2) as loader:
        whole = collect(loader)
    busy = torch.randn(4096, 4096, device="cuda")
    with Loader(**arguments, num_threads=2, prefetch=1, pin_memory=True) as loader:
        copies = []
        for batch in loader:
            assert batch.images.is_pinned()
            for _ in range(20):
                busy = busy @ busy / 64
            copies.append(batch.images.to("cuda", non_blocking=True))
    for copy, arrays in zip(copies, whole, strict=True):
        assert np.array_equal(copy.cpu().numpy(), arrays[0])


@pytest.mark.parametrize("kept", [True, False], ids=["one loader", "twenty loaders"])
def test_abandoned_iterations_leave_nothing(photos, monkeypatch, kept):
    """A break, a sanity check, a limited epoch. Counted: the memory of batches, the open files, the threads."""
    empty, memories = torch.empty, []

    def counted(*shape, **options):
        memory = empty(*shape, **options)
        if memory.numel():
            memories.append(weakref.ref(memory))
        return memory

    def num_held() -> int:
        return sum(memory() is not None for memory in memories)

    monkeypatch.setattr(torch, "empty", counted)
    arguments = training(photos) | {"num_threads": 1, "prefetch": 2}
    loader, num_slots, num_files = Loader(**arguments), 4, len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        loader = loader if kept else Loader(**arguments)
        next(iter(loader))
        assert num_held() <= num_slots and not loader_threads()
    assert len(memories) >= 20 or (kept and len(memories) <= num_slots), "one loader fills its memory again"
    del loader
    gc.collect()
    assert num_held() == 0 and len(os.listdir("/proc/self/fd")) == num_files


def test_a_table_as_long_as_imagenets_is_opened_at_once(tmp_path):
    """1,281,167 images of one pixel. The tables stay in the file; stock ffcv holds 628 MiB of dictionaries."""
    num_samples = 1_281_167
    fields, metadata = np.zeros(2, beton.FIELD), np.zeros(num_samples, beton.SAMPLE)
    fields["type_id"] = beton.IMAGE_FIELD, beton.INT_FIELD
    start = beton.METADATA_START + metadata.nbytes
    metadata["image"]["mode"], metadata["label"] = beton.RAW, np.arange(num_samples) % 1000
    metadata["image"]["height"] = metadata["image"]["width"] = 1
    metadata["image"]["data_ptr"] = start + 3 * np.arange(num_samples)
    allocations = np.zeros(num_samples, beton.ALLOCATION)
    allocations["sample_id"], allocations["ptr"] = np.arange(num_samples), metadata["image"]["data_ptr"]
    allocations["size"] = 3
    header = np.array((beton.VERSION, 2, beton.MIN_PAGE_BYTES, num_samples, start + 3 * num_samples), beton.HEADER)
    with open(tmp_path / "large.beton", "wb") as file:
        for part in (header, fields, metadata, np.zeros(3 * num_samples, np.uint8), allocations):
            file.write(part.tobytes())
    del metadata, allocations
    num_lines, tracer = 0, sys.gettrace()

    def count_lines(frame, event, argument):
        nonlocal num_lines
        num_lines += event == "line"
        return count_lines

    tracemalloc.start()
    sys.settrace(count_lines)
    opened = beton.Beton(tmp_path / "large.beton")
    sys.settrace(tracer)
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert opened.num_samples == num_samples and int(opened.labels[-1]) == (num_samples - 1) % 1000
    assert num_lines < 10_000 and kept_bytes < 1e6, "no loop over samples, no table in memory"


IMPORTS = """
import sys, torch
torch.set_num_threads(3)
import tencrop.training.data_module, tencrop.evaluation.inference
assert torch.get_num_threads() == 3 and not {"ffcv", "numba", "cv2"} & set(sys.modules)
"""


def test_importing_changes_nothing_and_needs_no_ffcv():
    """ffcv sets torch's threads to 1 on import, and needs distutils, which Python 3.12 has no more."""
    result = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
