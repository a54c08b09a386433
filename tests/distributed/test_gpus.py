import pytest

from tencrop.config import Hardware, UserError
from tencrop.distributed.gpus import check_num_gpus


@pytest.mark.parametrize(("accelerator", "num_seen"), [("gpu", 2), ("gpu", 8), ("cpu", 0)])
def test_enough_gpus_are_accepted(accelerator, num_seen, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_seen)
    check_num_gpus(Hardware(accelerator, 2, 1, "auto", None), 2)


def test_too_few_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UserError, match=r"hardware\.devices=2: torch sees 1 GPUs here; choose fewer, or hardware=cpu"):
        check_num_gpus(Hardware("gpu", 2, 1, "auto", None), 2)
