"""The digest of consumed samples depends on samples and positions, not on how they are batched."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tencrop.data.sampling.digest import Digest, digest_text, sample_hashes


def fields(num_samples: int, seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    index = draw.permutation(num_samples).astype(np.int64)
    boxes = draw.integers(0, 99, (num_samples, 4), dtype=np.int32)
    return [index, boxes, draw.random(num_samples) < 0.5, draw.random((num_samples, 3)).astype(np.float32)]


def digest_of(hashes: np.ndarray, parts, base: int = 0) -> dict[str, str]:
    """The logged digest if the samples arrive in these parts (arrays of positions)."""
    digest = Digest()
    for part in parts:
        digest.add(hashes[part], base + part)
    return digest_text(digest.sums)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.data())
def test_the_digest_does_not_depend_on_batches_and_their_order(num_samples, data):
    hashes = sample_hashes(fields(num_samples))
    places = np.array(data.draw(st.permutations(range(num_samples))))
    cuts = sorted(data.draw(st.lists(st.integers(0, num_samples), max_size=4)))
    assert digest_of(hashes, np.split(places, cuts)) == digest_of(hashes, [np.arange(num_samples)])


def test_ranks_add_up():
    hashes, places = sample_hashes(fields(12)), np.arange(12)
    ranks = [Digest(), Digest()]
    for rank, part in zip(ranks, np.split(places, 2), strict=True):
        rank.add(hashes[part], part)
    assert digest_text(ranks[0].sums + ranks[1].sums) == digest_of(hashes, [places])


@pytest.mark.parametrize("field", range(4))
def test_every_field_of_every_sample_counts(field):
    places = np.arange(6)
    before = digest_of(sample_hashes(fields(6)), [places])
    for sample in range(6):
        changed = fields(6)
        changed[field][sample] = 1 - changed[field][sample] if field != 2 else ~changed[field][sample]
        assert digest_of(sample_hashes(changed), [places]) != before


def test_samples_in_other_positions_change_the_digest():
    hashes, places = sample_hashes(fields(6)), np.arange(6)
    swapped = hashes.copy()
    swapped[[1, 4]] = hashes[[4, 1]]
    digests = [digest_of(hashes, [places]), digest_of(swapped, [places]), digest_of(hashes, [places], base=6)]
    digests.append(digest_of(hashes, [places, places]))  # seen twice
    digests.append(digest_of(hashes, [places[:5]]))
    assert len({digest["data_digest"] for digest in digests}) == 5


def test_pixels_have_a_digest_of_their_own():
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    places = np.arange(6)
    without, before = (digest_of(sample_hashes(fields(6), pixels), [places]) for pixels in (None, images))
    assert set(without) == {"data_digest"} and before["data_digest"] == without["data_digest"]
    images[3, 7, 7, 2] ^= 1
    after = digest_of(sample_hashes(fields(6), images), [places])
    assert after["data_digest"] == before["data_digest"] and after["pixel_digest"] != before["pixel_digest"]


def test_digest_equals_plain_python_integers():
    """The same in plain Python integers. Pinned, because logs record digests."""
    index, boxes, first = np.arange(3), np.arange(6, dtype=np.int32).reshape(3, 2), 2**40
    words = [0, 0]
    for place in range(3):
        row = hashlib.sha256(index[place].tobytes() + boxes[place].tobytes()).digest()
        for word in range(2):
            words[word] += int.from_bytes(row[8 * word :][:8], "little") * (2 * (first + place) + 1)
    expected = "".join(f"{word % 2**64:016x}" for word in words)
    assert digest_of(sample_hashes([index, boxes]), [np.arange(3)], base=first) == {"data_digest": expected}
    assert expected == "705e52e041eb73a895aca3f0bd5705c4"
