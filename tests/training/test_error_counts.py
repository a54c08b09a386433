import torch

from operations import Operations
from tencrop.training.error_counts import add_errors, no_errors, read_errors


def test_counts_are_summed_over_micro_batches_and_then_averaged():
    counts = no_errors()
    logits, labels = torch.eye(10)[:6] * 5, torch.tensor([0, 1, 2, 3, 9, 9])
    for loss in (0.5, 0.25):
        add_errors(counts, torch.tensor(loss), logits, labels)
    assert counts.tolist() == [4.5, 4.0, 4.0, 12.0]
    assert read_errors(counts) == {"loss": 0.375, "top1_error": 1 / 3, "top5_error": 1 / 3, "num_images": 12}
    assert not counts.any()


def test_counting_takes_few_operations():
    logits, labels = torch.randn(32, 1000), torch.zeros(32, dtype=torch.int64)
    counts, loss = no_errors(), torch.tensor(2.0)
    with Operations() as operations:
        add_errors(counts, loss, logits, labels)
    assert operations.counts.total() <= 16, operations.counts  # 25 with ranks for each of the two errors
