"""The expected speed on many GPUs: limits that anyone can check by hand."""

import subprocess
import sys
from dataclasses import replace

import pytest

from tencrop.config import Link, PlanningConfig
from tencrop.planning.scaling import BUCKET_BYTES, all_reduce_seconds, scale

CONFIG = PlanningConfig(
    step_ms=100.0,
    parameters=25_000_000,
    images_per_gpu=250,
    gpus=[1],
    gpus_per_node=8,
    node_link=Link(100.0, 0.0),
    link=Link(10.0, 0.0),
    loader_images_per_s=1000.0,
    image_kb=100.0,
    num_images=1_000_000,
)


def test_all_reduce_is_a_ring():
    assert all_reduce_seconds(8e9, 1, bytes_per_s=1e9, latency_s=1) == 0
    # Two ranks exchange a half in each direction, twice.
    assert all_reduce_seconds(8e9, 2, bytes_per_s=1e9, latency_s=0.5) == pytest.approx(2 * (4 + 0.5))
    assert all_reduce_seconds(8e9, 4, bytes_per_s=1e9, latency_s=0.5) == pytest.approx(6 * (2 + 0.5))


def test_one_gpu_waits_for_nobody():
    one = scale(CONFIG, 1, order_s=0.6)
    assert (one.all_reduce_s, one.step_s, one.efficiency) == (0, 0.1, 1)
    assert one.images_per_s == pytest.approx(2500) and one.cores_per_node == pytest.approx(2.5)
    assert one.read_bytes_per_s == pytest.approx(2500 * 100e3)
    assert one.epoch_s == pytest.approx(4000 * 0.1 + 0.6 + 0.1)


def test_the_slower_link_counts_once_there_are_several_nodes():
    node, two = scale(CONFIG, 8, order_s=0), scale(CONFIG, 9, order_s=0)
    assert (node.num_nodes, two.num_nodes) == (1, 2)
    assert node.all_reduce_s == pytest.approx(2 * 7 / 8 * 100e6 / 100e9)
    assert two.all_reduce_s == pytest.approx(2 * 8 / 9 * 100e6 / 10e9)


def test_the_backward_pass_hides_all_but_the_last_bucket():
    hidden = scale(CONFIG, 8, order_s=0)
    assert hidden.exposed_s == pytest.approx(hidden.all_reduce_s * BUCKET_BYTES / 100e6)
    slow = scale(replace(CONFIG, node_link=Link(0.1, 0.0)), 8, order_s=0)  # 1.75 s for a step of 0.1 s
    assert slow.exposed_s == pytest.approx(slow.all_reduce_s - 0.1 * 2 / 3)
    small = scale(replace(CONFIG, parameters=1000), 8, order_s=0)  # a single bucket
    assert small.exposed_s == small.all_reduce_s


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tencrop.planning", *words], capture_output=True, text=True)


def test_the_command_prints_a_row_per_number_of_gpus_and_its_assumptions():
    done = run("step_ms=100", "parameters=25557032", "gpus=[1,16]", "num_images=10000")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 0 and [row[:2] for row in rows[1:3]] == [["1", "1"], ["16", "2"]]
    for word in ("102 MB", "300 GB/s", "25 GB/s", "1000 images/s", "110 kB", "10,000 samples"):
        assert word in done.stdout, word


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "step_ms, parameters: give both"),
        (["step_ms=1", "parameters=1", "gpus=[64]", "num_images=100"], "gpus=64: a step would take 16,384 images"),
        (["step_ms=-1"], "step_ms=-1"),
    ],
)
def test_bad_input(words, sentence):
    done = run(*words)
    assert done.returncode == 2 and sentence in done.stderr and done.stdout == "", done.stderr
