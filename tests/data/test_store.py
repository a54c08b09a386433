import time

import pytest

from tencrop.data.store import in_order


def test_results_come_in_order_whatever_the_threads_do():
    def slow_first(number: int) -> int:
        time.sleep(0.02 if number % 7 == 0 else 0)
        return number * number

    expected = [(number, number * number) for number in range(40)]
    for num_threads in (1, 3):
        assert list(in_order(slow_first, range(40), num_threads=num_threads)) == expected
    assert list(in_order(slow_first, [], num_threads=2)) == []


def test_threads_run_only_so_far_ahead():
    started = []
    results = in_order(started.append, range(1000), num_threads=2)
    for _ in range(3):
        next(results)
    assert len(started) <= 3 + 4 * 2
    results.close()
    assert len(started) < 20


def test_an_error_comes_at_its_place():
    results = in_order(lambda number: 1 // (3 - number), range(100), num_threads=2)
    assert [result for _, result in (next(results), next(results), next(results))] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
