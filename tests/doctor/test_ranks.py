"""The judgment of all-reduce and clocks, planted; test_examine.py measures both between two processes."""

import pytest
import torch

from tencrop.doctor.ranks import gather, judge_all_reduce, judge_clocks, measure_all_reduce, measure_clocks


@pytest.mark.parametrize(
    ("seconds", "worst", "is_gpu", "state"),
    [
        (0.001, 0.0, True, "ok"),  # 153 GB/s: NVLink
        (0.1, 0.0, True, "warning"),  # 1.5 GB/s: Ethernet
        (0.1, 0.0, False, "ok"),
        (10.0, 0.0, False, "warning"),
        (0.001, 0.25, True, "error"),
    ],
)
def test_all_reduce(seconds, worst, is_gpu, state):
    (found,) = judge_all_reduce((seconds, worst), num_ranks=4, is_gpu=is_gpu)
    assert found.state == state and (found.remedy is None) == (state == "ok")


def test_the_bandwidth_is_that_of_the_bus():
    (found,) = judge_all_reduce((0.1, 0.0), num_ranks=4, is_gpu=False)
    assert "1.53 GB/s between 4 ranks (gloo): 100 ms" in found.text  # 2 x 3/4 x 102.2 MB / 0.1 s


def test_one_process_needs_neither():
    assert measure_all_reduce(torch.device("cpu")) is None and measure_clocks("here") == {} and gather(1) == [1]
    assert judge_all_reduce(None, num_ranks=1, is_gpu=False)[0].state == "ok"


@pytest.mark.parametrize(("late", "state"), [(0.01, "ok"), (5.0, "warning"), (301.0, "error")])
def test_clocks(late, state):
    (found,) = judge_clocks({"a": 0.0, "b": -late, "c": 0.0})
    assert found.state == state and (found.remedy is None) == (state == "ok") and "between b and a" in found.text


def test_the_clocks_of_one_node_are_one():
    assert judge_clocks({"a": 0.0})[0].text == "one node"
