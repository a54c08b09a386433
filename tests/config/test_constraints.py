"""Each constraint allows its bounds or refuses them, and says so in words."""

import pytest

from tencrop.config.constraints import Increasing, Interval, Length, LowHigh, UsedIf


@pytest.mark.parametrize(
    ("interval", "words", "allowed", "refused"),
    [
        (Interval(gt=0), "above 0", [1e-300, 5], [0, -1]),
        (Interval(ge=0), "0 or above", [0, 5], [-1e-300]),
        (Interval(ge=0, le=1), "in [0, 1]", [0, 1], [-0.1, 1.1]),
        (Interval(ge=0, lt=1), "in [0, 1)", [0, 0.999], [-0.1, 1]),
        (Interval(gt=0, le=65_500), "above 0 and at most 65,500", [1, 65_500], [0, 65_501]),
        (Interval(lt=2), "below 2", [-5, 1.9], [2]),
    ],
)
def test_interval(interval, words, allowed, refused):
    assert str(interval) == words
    assert all(map(interval.allows, allowed)) and not any(map(interval.allows, refused))


@pytest.mark.parametrize(
    ("pair", "words", "allowed", "refused"),
    [
        (
            LowHigh(gt=0, le=1),
            "[low, high] with 0 < low <= high <= 1",
            [[0.1, 1], [1, 1]],
            [[0, 1], [0.5, 2], [1, 0.1]],
        ),
        (LowHigh(ge=0, lt=1), "[low, high] with 0 <= low <= high < 1", [[0, 0.9]], [[0, 1], [-1, 0], [0.5], [0, 0, 0]]),
    ],
)
def test_low_and_high(pair, words, allowed, refused):
    assert str(pair) == words
    assert all(map(pair.allows, allowed)) and not any(map(pair.allows, refused))


def test_length_and_order_of_a_list():
    assert Length(2).allows([1, 2]) and not Length(2).allows([1])
    assert Increasing().allows([]) and Increasing().allows([1, 2]) and not Increasing().allows([1, 1])


def test_used_if_names_a_key_and_its_choices():
    used = UsedIf("name", "sgd", "sgd_alexnet")
    assert (used.selector, used.choices) == ("name", ("sgd", "sgd_alexnet"))
