"""One global order for every layout: ranks, micro-batches and interruptions only partition it."""

import threading
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tencrop.config import UserError
from tencrop.data.sampling.rng import Stream, hashes
from tencrop.data.sampling.sampler import (
    MAX_PADDED_BYTES,
    OrderAhead,
    check_rescaled,
    epoch_order,
    evaluation_batches,
    evaluation_part,
    minival_split,
    split_to_fit_memory,
    training_positions,
)


def global_batches(index, num_ranks, micro_batch, *, seed, epoch, global_batch):
    """The samples of all ranks together, as [global batches, B]."""
    order, layout = epoch_order(index, seed=seed, epoch=epoch), {"global_batch": global_batch, "num_ranks": num_ranks}
    positions = [
        training_positions(len(index) // global_batch, micro_batch=micro_batch, rank=rank, **layout)
        for rank in range(num_ranks)
    ]
    return np.concatenate([order[part].reshape(-1, global_batch // num_ranks) for part in positions], axis=1)


def test_golden_order():
    assert epoch_order(np.arange(10), seed=0, epoch=0).tolist() == [2, 8, 0, 5, 9, 7, 6, 3, 4, 1]
    assert epoch_order(np.arange(10), seed=0, epoch=1).tolist() == [9, 2, 8, 7, 6, 0, 1, 3, 5, 4]


def test_order_is_by_hash_and_holds_every_sample_once():
    index = np.arange(1000)
    order = epoch_order(index, seed=3, epoch=7)
    assert np.array_equal(np.sort(order), index)
    assert np.all(np.diff(hashes(seed=3, index=order, epoch=7, stream=Stream.ORDER).astype(object)) > 0)


def test_order_depends_on_the_set_of_samples_only():
    index = np.arange(50)
    assert np.array_equal(epoch_order(index[::-1], seed=1, epoch=0), epoch_order(index, seed=1, epoch=0))
    subset = epoch_order(index[::3], seed=1, epoch=0)
    whole = epoch_order(index, seed=1, epoch=0)
    assert np.array_equal(subset, whole[np.isin(whole, index[::3])])


def test_part_of_an_order():
    whole, places = epoch_order(np.arange(50), seed=1, epoch=2), np.array([3, 7, 40])
    assert np.array_equal(epoch_order(np.arange(50), seed=1, epoch=2, places=places), whole[places])


def test_the_next_order_is_computed_ahead_in_a_thread():
    calls = []

    def compute(epoch: int):
        calls.append((epoch, threading.current_thread().name))
        return epoch_order(np.arange(20), seed=0, epoch=epoch)

    order = OrderAhead(compute)
    for epoch in (3, 3, 4, 5):
        assert np.array_equal(order(epoch), epoch_order(np.arange(20), seed=0, epoch=epoch))
        for _ in range(2):
            order.prepare(epoch + 1)
        order.close()
    main = threading.current_thread().name
    assert calls == [(3, main), (4, "tencrop-order"), (5, "tencrop-order"), (6, "tencrop-order")]


def test_ties_are_ordered_by_index(monkeypatch):
    monkeypatch.setattr("tencrop.data.sampling.sampler.hashes", lambda *, index, **_: np.zeros(len(index), np.uint64))
    assert epoch_order(np.array([5, 2, 9]), seed=0, epoch=0).tolist() == [2, 5, 9]


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_every_layout_sees_the_same_global_batches(num_ranks, micro_batch):
    key = {"seed": 0, "epoch": 2, "global_batch": 16}
    whole = epoch_order(np.arange(100), seed=0, epoch=2)
    batches = global_batches(np.arange(100), num_ranks, micro_batch, **key)
    assert np.array_equal(batches, whole[:96].reshape(6, 16))  # 100 = 6 * 16 + 4: the last 4 are dropped


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**64 - 1))
def test_layouts_never_change_the_global_batches(num_samples, micro_batch, accumulate, num_ranks, seed):
    global_batch = micro_batch * accumulate * num_ranks
    key = {"seed": seed, "epoch": 0, "global_batch": global_batch}
    batches = global_batches(np.arange(num_samples), num_ranks, micro_batch, **key)
    assert batches.size == num_samples - num_samples % global_batch
    assert np.array_equal(batches, global_batches(np.arange(num_samples), 1, global_batch, **key))


@given(st.integers(0, 60), st.integers(1, 7), st.integers(1, 9))
def test_evaluation_counts_every_sample_once(num_samples, num_ranks, micro_batch):
    index = np.arange(num_samples)
    parts = [evaluation_part(index, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    assert np.array_equal(np.concatenate(parts), index)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    batches = [
        evaluation_batches(index, micro_batch=micro_batch, rank=r, num_ranks=num_ranks) for r in range(num_ranks)
    ]
    flat = [batch for part in batches for batch in part]
    assert all(0 < len(batch) <= micro_batch for batch in flat)
    assert np.array_equal(np.concatenate([index[:0], *flat]), index)


@given(st.data())
def test_padded_batches_stay_within_memory(data):
    """For any sizes: the same samples in order, no batch too large unless it is one image, none split needlessly."""
    sides = st.tuples(st.integers(1, 60), st.integers(1, 60))
    sizes = np.array(data.draw(st.lists(sides, max_size=60)), np.int32).reshape(-1, 2)
    micro_batch = data.draw(st.integers(1, 20))
    batches = evaluation_batches(np.arange(len(sizes)), micro_batch=micro_batch, rank=0, num_ranks=1)

    def num_bytes(batch) -> int:
        return 3 * len(batch) * int(sizes[batch].max(axis=0).prod())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "tencrop.data.sampling.sampler.MAX_PADDED_BYTES", limit := data.draw(st.sampled_from([0, 5000, 20_000]))
        )
        parts = split_to_fit_memory(batches, sizes)
    assert np.array_equal(np.concatenate([np.arange(0), *parts]), np.arange(len(sizes)))
    assert all(1 <= len(part) <= micro_batch and (len(part) == 1 or num_bytes(part) <= limit) for part in parts)
    for part, following in pairwise(parts):
        joined = np.concatenate([part, following[:1]])
        assert following[0] % micro_batch == 0 or num_bytes(joined) > limit


def test_a_tall_and_a_wide_image_do_not_make_all_large():
    """256 images of ImageNet's usual shape, among them two of extreme aspect (1 : 3.4)."""
    sizes = np.full((256, 2), (256, 341), np.int32)
    sizes[100], sizes[200] = (877, 256), (256, 877)
    parts = split_to_fit_memory([np.arange(256)], sizes)
    assert [len(part) for part in parts] == [149, 107]  # 149 of 877 x 341 pixels fill MAX_PADDED_BYTES
    assert 4 * MAX_PADDED_BYTES < 256 * 877 * 877 * 3


def test_uneven_parts_of_500_images_on_3_processes():
    sizes = [len(evaluation_part(np.arange(500), rank=rank, num_ranks=3)) for rank in range(3)]
    assert sizes == [166, 167, 167]


def test_minival_has_the_smallest_hashes():
    train, minival = minival_split(1000, fraction=0.02)
    assert len(minival) == 20
    assert np.array_equal(np.sort(np.concatenate([train, minival])), np.arange(1000))
    of = partial(hashes, seed=0, epoch=0, stream=Stream.MINIVAL)
    assert of(index=minival).max() < of(index=train).min()
    assert minival.tolist()[:5] == [39, 59, 65, 122, 303]


def test_minival_of_nothing_and_of_all():
    train, minival = minival_split(10, fraction=0.0)
    assert len(minival) == 0 and train.tolist() == list(range(10))
    assert len(minival_split(10, fraction=0.01)[1]) == 1
    with pytest.raises(UserError, match=r"training\.minival_fraction=0\.99"):
        minival_split(10, fraction=0.99)


def test_large_images_are_reported_and_impossible_ones_refused():
    def said(*sizes):
        return check_rescaled(np.array([(50, 60), *sizes], np.int32), "image {}".format, key="protocol.side=256")

    assert said((6688, 6688)) is None, "a batch of 134 MB"
    assert said((9000, 9000)) == (
        "protocol.side=256: image 1 has 9000 x 9000 pixels at that side: a batch of it alone takes 243 MB,"
        " 4 times that as the network's input"
    )
    with pytest.raises(UserError, match=r"protocol\.side=256: image 2 has 16768000 x 256 pixels .* leave it out"):
        said((9000, 9000), (256, 16_768_000))
