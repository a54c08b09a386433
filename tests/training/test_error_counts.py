import torch

from tencrop.training.error_counts import add_errors, no_errors, read_errors


def test_counts_are_summed_over_micro_batches_and_then_averaged():
    counts = no_errors()
    logits, labels = torch.eye(10)[:6] * 5, torch.tensor([0, 1, 2, 3, 9, 9])
    for loss in (0.5, 0.25):
        add_errors(counts, torch.tensor(loss), logits, labels)
    assert counts.tolist() == [4.5, 4.0, 4.0, 12.0]
    assert read_errors(counts) == {"loss": 0.375, "top1_error": 1 / 3, "top5_error": 1 / 3, "num_images": 12}
    assert not counts.any()
