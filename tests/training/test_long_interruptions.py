"""Multi-rank runs interrupted at many random steps: `make test-long`.

test_fit.py tests one step; here are ten, for two and for four ranks, at steps where no checkpoint is due.
"""

import random
import signal

import pytest

from tencrop.training.checkpoints import read_checkpoint

pytestmark = pytest.mark.long

OPTIONS = ("training.global_batch=8", "training.epochs=16", "log_every_steps=1", "checkpoint_every_steps=6")
STEPS_PER_EPOCH, NUM_STEPS = 2, 32
NUM_INTERRUPTIONS = 10


def interruptions(seed: int) -> list[int]:
    """Steps at which no checkpoint is due: neither at the end of an epoch nor at a multiple of six."""
    steps = [step for step in range(1, NUM_STEPS) if step % STEPS_PER_EPOCH and step % 6]
    return sorted(random.Random(seed).sample(steps, NUM_INTERRUPTIONS))


def interrupted(train, name: str, step: int, num_ranks: int, options: tuple[str, ...]) -> None:
    fault = {"signal_number": signal.SIGUSR1, "at_step": step, "rank": str(step % num_ranks)}
    run = train(name, *options, num_ranks=num_ranks, fault=fault)
    assert run.exit_code == 75 and read_checkpoint(run.last)["tencrop"]["step"] == step


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ten_random_interruptions_do_not_change_the_result(train, num_ranks):
    """Ten runs interrupted once, and one interrupted ten times: equal bit for bit on every rank, in every row."""
    options, steps = (*OPTIONS, f"hardware.devices={num_ranks}"), interruptions(seed=num_ranks)
    print(f"{num_ranks} ranks, interrupted after steps {steps} of {NUM_STEPS}")
    whole = train("whole", *options, num_ranks=num_ranks)
    for step in steps:
        interrupted(train, f"once at {step}", step, num_ranks, options)
        interrupted(train, "again and again", step, num_ranks, options)
    for name in (*(f"once at {step}" for step in steps), "again and again"):
        run = train(name, *options, num_ranks=num_ranks)
        assert run.exit_codes == [0] * num_ranks and run.rows() == whole.rows()
        for rank in range(num_ranks):
            for weights in ("weights_sha256", "ema_sha256"):
                assert run.result(rank)[weights] == whole.result()[weights], (name, rank, weights)
