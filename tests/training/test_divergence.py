import pytest
import torch
from torch import nn

from operations import Operations
from tencrop.training.divergence import NO_STEP, Diverged, check_losses, check_weights_finite, record_nonfinite_loss
from typed import present


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_the_first_step_with_a_nonfinite_loss_is_kept(bad):
    first = torch.tensor(NO_STEP)
    for step, loss in enumerate((1.0, 2.0)):
        record_nonfinite_loss(first, torch.tensor(loss), step=step)
    check_losses(first)
    for step, loss in ((2, bad), (3, 1.0), (4, bad)):
        record_nonfinite_loss(first, torch.tensor(loss), step=step)
    with pytest.raises(Diverged, match="the loss is NaN or infinite at step 2"):
        check_losses(first)


def test_a_nonfinite_weight_is_found():
    norm = nn.BatchNorm1d(2)
    model = nn.Sequential(nn.Linear(2, 2), norm)
    check_weights_finite(model, step=5)
    present(norm.running_var)[0] = float("nan")
    with pytest.raises(Diverged, match="a weight is NaN or infinite after step 5"):
        check_weights_finite(model, step=5)


def test_watching_the_loss_takes_few_operations():
    first, loss = torch.tensor(NO_STEP), torch.tensor(2.0)
    with Operations() as operations:
        record_nonfinite_loss(first, loss, step=3)
    assert operations.counts.total() <= 7, operations.counts  # 9 with torch.isfinite
