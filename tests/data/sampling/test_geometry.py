"""Sizes and boxes against torchvision's arithmetic."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.functional import _compute_resized_output_size

from tencrop.data.sampling.geometry import center_box, central_square, rescaled_size, stored_size

LENGTHS = st.integers(1, 6000)


@given(LENGTHS, LENGTHS, st.integers(1, 1000))
def test_rescaled_size_is_torchvisions(height, width, side):
    assert list(rescaled_size(height, width, side)) == _compute_resized_output_size((height, width), [side])


@given(LENGTHS, LENGTHS, st.integers(1, 1000))
def test_arrays_give_what_numbers_give(height, width, side):
    for function in (
        lambda h, w: rescaled_size(h, w, side),
        lambda h, w: stored_size(h, w, short_side=side, max_side=2 * side),
        central_square,
    ):
        single = function(height, width)
        assert all(isinstance(value, int) for value in single)
        assert [value.tolist() for value in function(np.array([height]), np.array([width]))] == [[v] for v in single]


@pytest.mark.parametrize(
    ("size", "short_side", "max_side", "expected"),
    [
        ((375, 500), None, None, (375, 500)),
        ((375, 500), 256, None, (256, 341)),
        ((500, 375), 256, None, (341, 256)),
        ((200, 500), 256, None, (200, 500)),  # never enlarged
        ((375, 500), None, 400, (300, 400)),
        ((375, 500), None, 500, (375, 500)),
        ((300, 3000), 256, 1000, (100, 1000)),  # first the shorter side, then the longer: 256 x 2560, 100 x 1000
        ((1, 3000), None, 100, (1, 100)),
    ],
)
def test_stored_size(size, short_side, max_side, expected):
    assert stored_size(*size, short_side=short_side, max_side=max_side) == expected


@given(LENGTHS, LENGTHS, st.integers(1, 600), st.integers(1, 600))
def test_stored_size_keeps_its_limits(height, width, short_side, max_side):
    stored = stored_size(height, width, short_side=short_side, max_side=max_side)
    assert 1 <= stored[0] <= height and 1 <= stored[1] <= width
    assert min(stored) <= short_side and max(stored) <= max_side


@given(LENGTHS, LENGTHS, st.data())
def test_center_box_is_torchvisions_center_crop(height, width, data):
    box_height, box_width = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = round((height - box_height) / 2.0), round((width - box_width) / 2.0)
    assert center_box(height, width, box_height, box_width) == (top, left, box_height, box_width)


def test_central_square():
    assert central_square(375, 500) == (0, 62, 375, 375)
    assert central_square(500, 333) == (84, 0, 333, 333)  # 83.5 to the even number


def test_a_box_that_does_not_fit_is_an_assertion_error():
    with pytest.raises(AssertionError):
        center_box(10, 10, 11, 5)
