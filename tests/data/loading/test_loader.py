"""The loader applies the plan regardless of threads, ranks and interruptions, and its thread never outlives it."""

import gc
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable
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
CROPS: dict[str, Callable[..., Augmentation]] = {
    "random_resized": partial(Augmentation, "random_resized", area=[0.08, 1.0], aspect=[3 / 4, 4 / 3]),
    "random": partial(Augmentation, "random", side=[32, 48], region="whole"),
    "none": partial(Augmentation, "none"),
}


def training(split, *, crop="random_resized", filter="nearest", size=32, seed=0, **kwargs):
    """Arguments of a loader over the training batches of a split."""
    augmentation = CROPS[crop](size=size, filter=filter, flip=0.5, pca=Pca(0.1, "dataset"))
    layout = {"global_batch": 4, "micro_batch": 2, "rank": 0, "num_ranks": 1} | kwargs
    positions = training_positions(split.num_samples // layout["global_batch"], **layout)
    plan = partial(training_plan, stored_sizes=split.stored_sizes, augmentation=augmentation, seed=seed)
    return {
        "split": split,
        "batch_sampler": lambda epoch: epoch_order(np.arange(split.num_samples), seed=seed, epoch=epoch)[positions],
        "plan": lambda index, epoch: plan(index, epoch=epoch),
        "filter": filter,
    }


def fields(batch) -> dict:
    """All arrays of a batch by name, the parameters of its transforms included."""
    return {name: value for name, value in (batch._asdict() | batch.params).items() if name != "params"}


def collect(batches) -> list[list[np.ndarray]]:
    """The batches' arrays, copied (their memory is used again)."""
    return [[np.asarray(field).copy() for field in fields(batch).values()] for batch in batches]


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
    """The pixels that the nearest filter selects from a coordinate-coded image, from the box alone: uint8 [h, w, 3]."""
    top, left, height, width = (int(value) for value in box)
    rows = top + ((np.arange(size[0]) + 0.5) * height / size[0]).astype(int)
    columns = left + ((np.arange(size[1]) + 0.5) * width / size[1]).astype(int)
    columns = columns[::-1] if flip else columns
    grid = np.broadcast_arrays(columns[None, :], rows[:, None], np.full((1, 1), index))
    return np.stack(grid, axis=2).astype(np.uint8)


@pytest.mark.parametrize("crop", CROPS)
def test_the_planned_boxes_and_flips_are_applied(coordinates, crop):
    """Each stored pixel encodes its own coordinates and image, so the output shows where it was read."""
    arguments = training(coordinates, crop=crop)
    num_flipped = num_images = 0
    with Loader(**arguments, num_threads=2) as loader:
        for epoch in range(5):
            for number, batch in enumerate(loader.batches(epoch)):
                index = arguments["batch_sampler"](epoch)[number]
                plan = arguments["plan"](index, epoch)
                assert batch.index.tolist() == index.tolist()
                assert batch.boxes.tolist() == plan.boxes.tolist() and batch.flips.tolist() == plan.flips.tolist()
                for image, i, box, size, flip in zip(batch.images, *plan[:4], strict=True):
                    assert np.array_equal(image.numpy(), looked_up(box, size, flip, i)), (epoch, i, box)
                num_flipped += int(batch.flips.sum())
                num_images += len(batch.index)
    assert num_images == 40 and 5 < num_flipped < 35


def test_dtypes_and_shapes_of_a_batch(photos):
    with Loader(**training(photos), num_threads=1) as loader:
        batch = next(loader.batches(0))
    shapes = {  # fields that the device computes with are tensors, fields that the host reads are arrays
        "images": (torch.uint8, (2, 32, 32, 3)),
        "labels": (torch.int64, (2,)),
        "index": (np.int64, (2,)),
        "boxes": (np.int32, (2, 4)),
        "flips": (np.bool_, (2,)),
        "sizes": (np.int32, (2, 2)),
        "pca_alphas": (torch.float32, (2, 3)),
        "hashes": (np.int64, (2, 2)),
    }
    arrays = fields(batch)
    assert {name: (arrays[name].dtype, tuple(arrays[name].shape)) for name in shapes} == shapes
    assert all(len(array) == 2 for array in arrays.values())
    assert batch.labels.tolist() == photos.labels[batch.index].tolist()
    assert batch.params["pca_alphas"].abs().sum() > 0


@pytest.mark.parametrize("prefetch", [1, 3])
def test_threads_and_prefetch_change_nothing(photos, prefetch):
    arguments = training(photos, filter="bicubic")
    with Loader(**arguments, num_threads=1) as one, Loader(**arguments, num_threads=2, prefetch=prefetch) as two:
        assert same(collect(one.batches(0)), collect(two.batches(0)))


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_every_number_of_ranks_gets_the_same_global_batches(photos, num_ranks):
    """Images, boxes, flips and colors: the concatenated parts of all ranks equal the batch of a single process."""
    key = {"global_batch": 4, "filter": "bilinear"}
    with Loader(**training(photos, micro_batch=4, **key), num_threads=1) as loader:
        whole = collect(loader.batches(0))
    parts = []
    for rank in range(num_ranks):
        part = training(photos, micro_batch=4 // num_ranks, rank=rank, num_ranks=num_ranks, **key)
        with Loader(**part, num_threads=1) as loader:
            parts.append(collect(loader.batches(0)))
    together = [[np.concatenate(arrays) for arrays in zip(*batch, strict=True)] for batch in zip(*parts, strict=True)]
    assert same(whole, together)


def test_two_epochs_differ_and_each_can_be_repeated(photos):
    with Loader(**training(photos), num_threads=1) as loader:
        first, second = collect(loader.batches(0)), collect(loader.batches(1))
        assert not same(first, second)
        assert same(collect(loader.batches(0)), first)


@pytest.mark.parametrize("consumed", [1, 5, 11])
def test_resuming_equals_not_stopping(photos, consumed):
    arguments = training(photos)
    with Loader(**arguments, num_threads=2) as loader:
        whole = collect(loader.batches(0)) + collect(loader.batches(1))
    with Loader(**arguments, num_threads=2) as stopped:
        iterator = stopped.batches(0)
        before = [collect([next(iterator)])[0] for _ in range(consumed)]
    decoded = []

    def counting_plan(index, epoch) -> Plan:
        decoded.append(index.tolist())
        return arguments["plan"](index, epoch)

    with Loader(**(arguments | {"plan": counting_plan}), num_threads=1) as resumed:
        after = collect(resumed.batches(0, consumed))
        assert decoded == arguments["batch_sampler"](0)[consumed:].tolist()  # no batch is decoded a second time
        assert same(before + after + collect(resumed.batches(1)), whole)


def test_an_epoch_that_resumes_at_its_end_is_empty(photos):
    with Loader(**training(photos), num_threads=1) as loader:
        assert collect(loader.batches(0, loader.num_batches(0))) == []


def test_a_new_iteration_ends_the_previous_one(photos):
    with Loader(**training(photos), num_threads=1) as loader:
        first = loader.batches(0)
        next(first)
        whole = collect(loader.batches(0))
        assert len(whole) == loader.num_batches(0) == 12 and len(loader_threads()) == 0
        assert list(first) == []


@pytest.mark.parametrize("way", ["forget the iterator", "forget the loader", "close", "with"])
def test_an_abandoned_iteration_leaves_no_thread(photos, way):
    loader = Loader(**training(photos), num_threads=2)
    iterator = loader.batches(0)
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


def test_the_order_of_a_finished_epoch_is_freed(photos):
    """For ImageNet it takes 10 MB an epoch."""
    arguments, orders = training(photos), []

    def batch_sampler(epoch):
        order = arguments["batch_sampler"](epoch)
        orders.append(weakref.ref(order))
        return order

    with Loader(**(arguments | {"batch_sampler": batch_sampler}), num_threads=1) as loader:
        for epoch in range(3):
            collect(loader.batches(epoch))
        gc.collect()
        assert [order() for order in orders] == [None] * 3


def test_a_batch_stays_valid_until_the_second_one_after_it(photos):
    with Loader(**training(photos), num_threads=1, prefetch=1) as loader:
        whole = collect(loader.batches(0))
        previous = None
        for number, batch in enumerate(loader.batches(0)):
            threading.Event().wait(0.005)  # let the thread run ahead as far as it may
            if previous is not None:
                assert np.array_equal(previous.images.numpy(), whole[number - 1][0])
            assert np.array_equal(batch.images.numpy(), whole[number][0])
            previous = batch


def test_evaluation_batches_are_padded_with_zeros(photos):
    protocol = Protocol("ten_crop", side=40, size=32, region="whole", filter="bicubic", average="softmax")
    parts = evaluation_batches(np.arange(photos.num_samples), micro_batch=5, rank=0, num_ranks=1)
    plan = partial(evaluation_plan, stored_sizes=photos.stored_sizes, protocol=protocol)
    indices = []
    with Loader(
        photos, lambda epoch: parts, lambda index, epoch: plan(index), filter="bicubic", num_threads=2
    ) as loader:
        for batch in loader.batches(0):
            assert tuple(batch.images.shape[1:3]) == tuple(batch.sizes.max(axis=0))
            assert (batch.sizes.min(axis=1) == 40).all()
            for image, (height, width) in zip(batch.images, batch.sizes.tolist(), strict=True):
                assert image[:height, :width].any()
                assert not image[height:].any() and not image[:, width:].any()
            indices += batch.index.tolist()
    assert indices == list(range(photos.num_samples))
    with Loader(photos, lambda epoch: [], lambda index, epoch: plan(index), filter="bicubic", num_threads=2) as empty:
        assert empty.num_batches(0) == 0 and list(empty.batches(0)) == []


def test_memory_of_an_oversized_image_is_not_kept(coordinates, monkeypatch):
    """Otherwise five such images would occupy their memory until the evaluation ends."""
    monkeypatch.setattr("tencrop.data.loading.loader.MAX_PADDED_BYTES", limit := 3 * 80 * 100)
    protocol = Protocol("center", side=None, size=1, region="whole", filter="bicubic", average="softmax")
    parts = [np.array([index]) for index in range(coordinates.num_samples)] * 2
    plan = partial(evaluation_plan, stored_sizes=coordinates.stored_sizes, protocol=protocol)
    with Loader(coordinates, lambda _: parts, lambda index, _: plan(index), filter="bicubic", num_threads=1) as loader:
        sizes = [batch.images.shape[1:3] for batch in loader.batches(0)]
        assert [tuple(size) for size in sizes] == SIZES * 2 and 3 * max(h * w for h, w in SIZES) > limit
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
        for epoch in range(2):  # the loader stays usable after the error
            with pytest.raises(DecodeError, match=f"{split.names(sample)}.*sample 5.*damaged"):
                collect(loader.batches(epoch))


def test_an_exception_in_the_thread_reaches_the_consumer(photos):
    def broken(index, epoch):
        raise RuntimeError("no plan")

    with (
        Loader(**(training(photos) | {"plan": broken}), num_threads=1) as loader,
        pytest.raises(RuntimeError, match="no plan"),
    ):
        next(loader.batches(0))


def test_torch_global_state_is_unchanged(photos):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with Loader(**training(photos), num_threads=2) as loader:
        collect(loader.batches(0))
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads


UNFINISHED = """
import sys
sys.path.insert(0, {folder!r})
from test_loader import Loader, open_split, training
loader = Loader(**training(open_split({root!r}, "train"), size=224), num_threads=2)
iterator = loader.batches(0)
next(iterator)
{end}
"""


@pytest.mark.parametrize(("end", "code"), [("", 0), ("raise ValueError('stop')", 1)])
def test_a_program_can_exit_during_an_iteration(prepared_photos, request, end, code):
    script = UNFINISHED.format(folder=str(request.path.parent), root=str(prepared_photos), end=end)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=900)
    assert result.returncode == code and "Fatal" not in result.stderr
    assert result.stderr == "" or "ValueError: stop" in result.stderr


def test_pinned_memory_is_overwritten_only_after_its_copy(monkeypatch):
    """The event is recorded when the batch is released, and waited for before its memory is used again."""
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
    """The thread sets its device before it pins memory or waits for an event, which would create a context on GPU 0."""
    threads: dict[threading.Thread, list[tuple[object, ...]]] = {}  # the calls of each thread that makes batches

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
        for epoch in range(2):
            assert len(list(loader.batches(epoch))) == loader.num_batches(epoch)
    assert len(threads) == (2 if pin_memory else 0)
    for calls in threads.values():
        assert calls[0] == ("set_device", 3) and len(calls) > 1 and {*calls[1:]} <= {("pin",), ("synchronize",)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_loader_waits_for_copies_to_a_gpu(photos):
    """Asynchronous copies that are queued behind a long computation still read the right images."""
    arguments = training(photos, filter="bilinear", size=224)
    with Loader(**arguments, num_threads=2) as loader:
        whole = collect(loader.batches(0))
    busy = torch.randn(4096, 4096, device="cuda")
    with Loader(**arguments, num_threads=2, prefetch=1, pin_memory=True) as loader:
        copies = []
        for batch in loader.batches(0):
            assert batch.images.is_pinned()
            for _ in range(20):
                busy = busy @ busy / 64
            copies.append(batch.images.to("cuda", non_blocking=True))
    for copy, arrays in zip(copies, whole, strict=True):
        assert np.array_equal(copy.cpu().numpy(), arrays[0])


@pytest.mark.parametrize("kept", [True, False], ids=["one loader", "twenty loaders"])
def test_abandoned_iterations_leave_nothing(photos, monkeypatch, kept):
    """As after a break, a sanity check or a limited epoch. Counts the memory of batches, open files and threads."""
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
        next(loader.batches(0))
        assert num_held() <= num_slots and not loader_threads()
    assert len(memories) >= 20 or (kept and len(memories) <= num_slots), "one loader fills its memory again"
    del loader
    gc.collect()
    assert num_held() == 0 and len(os.listdir("/proc/self/fd")) == num_files


def test_opening_a_file_of_imagenets_length_costs_no_time_per_sample(tmp_path):
    """1,281,167 images of one pixel. The tables stay in the mapped file; stock ffcv builds 628 MiB of dictionaries."""
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


def test_importing_the_loaders_neither_imports_ffcv_nor_changes_torch_threads():
    """ffcv sets torch's threads to 1 on import, and needs distutils, which Python 3.12 removed."""
    result = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
