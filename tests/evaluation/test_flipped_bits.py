"""Files with a flipped bit are detected: a short run of bench/flipped_bits.py, which flips more bits."""

import importlib.util
from pathlib import Path

import pytest

from tencrop.evaluation.results import load_result

PROGRAM = Path(__file__).parents[2] / "bench" / "flipped_bits.py"
NUM_FLIPS = 40


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("flipped_bits", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_flipped_bit_is_detected(program, make_config, new_network, save_checkpoint, evaluate, tmp_path) -> None:
    config = make_config()
    last = save_checkpoint(tmp_path / "run" / "last.ckpt", config, new_network(config))
    result = evaluate(config, last, tmp_path)
    scores = tmp_path / result["scores"]
    found = program.flipped(last, program.read_as_training, NUM_FLIPS, seed=0)
    assert found == {"refused": NUM_FLIPS}
    found = program.flipped(scores, program.reader_of_evaluation(scores), NUM_FLIPS, seed=0)
    assert found.keys() <= {"recomputed", "identical"} and found["recomputed"] > NUM_FLIPS - 5
    found = program.flipped(tmp_path / "center.result.json", load_result, NUM_FLIPS, seed=0)
    assert found.keys() <= {"refused", "identical"} and found["refused"] > NUM_FLIPS - 15


def test_the_counting_program_tells_silent_from_identical(program, tmp_path) -> None:
    path = tmp_path / "believed"
    path.write_bytes(bytes(range(64)))
    assert program.flipped(path, Path.read_bytes, 20, seed=0) == {"silent": 20}
    assert program.flipped(path, lambda path: len(path.read_bytes()), 20, seed=0) == {"identical": 20}
    assert path.read_bytes() == bytes(range(64))
