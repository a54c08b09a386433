import pytest

from tencrop.config import Hardware, UserError
from tencrop.distributed.gpus import check_num_gpus


@pytest.mark.parametrize(("accelerator", "num_seen"), [("gpu", 2), ("gpu", 8), ("cpu", 0)])
def test_enough_gpus_are_accepted(accelerator, num_seen, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_seen)
    check_num_gpus(Hardware(accelerator, 2, 1, "auto", None), 2)


@pytest.mark.parametrize(("num_seen", "remedy"), [(1, "choose fewer, or hardware=cpu"), (0, "set hardware=cpu")])
def test_too_few_gpus_are_refused(num_seen, remedy, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_seen)
    with pytest.raises(UserError, match=rf"hardware\.devices=2: torch sees {num_seen} GPUs here; {remedy}"):
        check_num_gpus(Hardware("gpu", 2, 1, "auto", None), 2)
