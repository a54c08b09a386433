"""Draws against Random123's published vectors and an independent pure-Python generator."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tencrop.data.sampling import rng
from tencrop.data.sampling.rng import Stream, hashes, integers_below, normals, philox4x32, random_uint64, uniforms

# Random123 1.14.0, tests/kat_vectors, the three lines "philox4x32 10": counter, key (low word first), output
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
SEEDS = st.integers(0, 2**64 - 1)
WORDS = st.integers(0, 2**32 - 1)


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def plain_philox(counter: list[int], key: list[int], num_rounds: int = 10) -> list[int]:
    """Philox4x32 as the paper's equations have it, in Python integers; the key is bumped before rounds 2, 3, ..."""
    (left0, right0, left1, right1), (k0, k1) = counter, key
    for number in range(num_rounds):
        if number:
            k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
        high0, low0 = divmod(0xD2511F53 * left0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * left1, 2**32)
        left0, right0, left1, right1 = high1 ^ right0 ^ k0, low1, high0 ^ right1 ^ k1, low0
    return [left0, right0, left1, right1]


def plain_draws(seed: int, index: int, epoch: int, view: int, stream: int, count: int) -> list[int]:
    values: list[int] = []
    for block in range((count + 1) // 2):
        word = plain_philox([index, epoch, view * 65536 + stream, block], [seed % 2**32, seed // 2**32])
        values += [word[0] * 2**32 + word[1], word[2] * 2**32 + word[3]]
    return values[:count]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_equals_the_published_vectors(counter, key, expected):
    low, high = words(key)
    assert philox4x32(np.array([words(counter)], np.uint32), high << 32 | low).tolist() == [words(expected)]
    assert plain_philox(words(counter), words(key)) == words(expected)


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.lists(WORDS, min_size=1, max_size=5), WORDS, st.integers(0, 2**16 - 1), st.integers(1, 9))
def test_draws_equal_a_plain_generator(seed, index, epoch, view, count):
    batch = random_uint64(
        seed=seed, index=np.array(index, np.int64), epoch=epoch, view=view, stream=Stream.FLIP, count=count
    )
    assert batch.tolist() == [plain_draws(seed, i, epoch, view, Stream.FLIP, count) for i in index]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5), st.integers(1, 2**32 - 1))
def test_integers_below_are_the_exact_products_high_part(draw, n):
    assert integers_below(np.array(draw, np.uint64), n).tolist() == [value * n >> 64 for value in draw]


def test_stream_numbers_are_fixed():
    """Renumbering would change the augmentation of every run that was ever recorded."""
    names = {"ORDER": 0, "MINIVAL": 1, "CROP": 2, "FLIP": 3, "PCA": 4, "JITTER": 5, "MIX": 6}
    names |= {"RANDAUGMENT": 7, "RANDAUGMENT_LEVEL": 8, "ERASE": 9, "ERASE_NOISE": 10, "NOISE_TABLE": 11, "STORE": 12}
    names |= {"CUTOUT": 13}
    assert {stream.name: stream.value for stream in Stream} == names


def test_uniforms_are_the_top_53_bits():
    expected = [[value // 2**11 / 2**53 for value in plain_draws(5, i, 3, 0, Stream.CROP, 3)] for i in range(100)]
    assert uniforms(seed=5, index=np.arange(100), epoch=3, stream=Stream.CROP, count=3).tolist() == expected


def test_normals_are_box_muller_of_consecutive_uniforms():
    index = np.arange(100)
    u = uniforms(seed=5, index=index, epoch=3, stream=Stream.PCA, count=4)
    radius = np.sqrt(-2 * np.log(1 - u[:, 0::2]))
    values = normals(seed=5, index=index, epoch=3, stream=Stream.PCA, count=3)
    np.testing.assert_allclose(values[:, 0], radius[:, 0] * np.cos(2 * math.pi * u[:, 1]), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(values[:, 1], radius[:, 0] * np.sin(2 * math.pi * u[:, 1]), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(values[:, 2], radius[:, 1] * np.cos(2 * math.pi * u[:, 3]), rtol=1e-12, atol=1e-14)


def test_normals_have_mean_0_and_variance_1():
    values = normals(seed=0, index=np.arange(20_000), epoch=0, stream=Stream.PCA, count=3)
    assert np.abs(values.mean(axis=0)).max() < 4 / math.sqrt(20_000)
    assert np.abs(values.var(axis=0) - 1).max() < 4 * math.sqrt(2 / 20_000)
    assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 4 / math.sqrt(20_000)


@pytest.mark.parametrize("function", [uniforms, normals])
def test_a_samples_numbers_do_not_depend_on_its_batch(function):
    """Bit for bit, although NumPy's log and cos run over vectors of different lengths."""
    index = np.arange(67)
    whole = function(seed=9, index=index, epoch=1, stream=Stream.PCA, count=3)
    for part in (index[:1], index[5:9], index[::-2], index[60:]):
        assert np.array_equal(function(seed=9, index=part, epoch=1, stream=Stream.PCA, count=3), whole[part])


def test_every_part_of_the_key_matters():
    base = partial(uniforms, seed=1, index=np.arange(4), epoch=2, view=3, stream=Stream.CROP, count=2)
    rows = [base(), base(seed=2), base(seed=1 + 2**32), base(epoch=3), base(view=4), base(stream=Stream.FLIP)]
    values = np.concatenate(rows).ravel()
    assert len(np.unique(values)) == values.size


def test_each_sample_may_have_its_own_view():
    index, view = np.array([5, 5, 5, 8]), np.array([0, 2, 1, 2])
    draw = partial(random_uint64, seed=7, epoch=1, stream=Stream.CROP, count=3)
    rows = [draw(index=index[i : i + 1], view=int(view[i]))[0] for i in range(4)]
    assert np.array_equal(draw(index=index, view=view), rows)
    assert len({row.tobytes() for row in rows}) == 4


def test_hash_is_the_first_draw():
    index = np.array([0, 7, 2**32 - 1])
    expected = [plain_draws(4, int(i), 6, 0, Stream.ORDER, 1)[0] for i in index]
    assert hashes(seed=4, index=index, epoch=6, stream=Stream.ORDER).tolist() == expected


def test_no_samples_give_no_numbers():
    assert uniforms(seed=0, index=np.zeros(0, np.int64), epoch=0, stream=Stream.CROP, count=3).shape == (0, 3)


def test_hashes_do_not_depend_on_the_blocks(monkeypatch):
    index = np.arange(10) * 7
    whole = hashes(seed=1, index=index, epoch=2, stream=Stream.ORDER)
    monkeypatch.setattr(rng, "HASH_BLOCK", 3)
    assert hashes(seed=1, index=index, epoch=2, stream=Stream.ORDER).tolist() == whole.tolist()
