"""How many devices the loader feeds."""

import pytest
import torch

from tencrop.config import derive_batches
from tencrop.doctor.loading import device_images_per_s, judge_loader
from typed import present


@pytest.mark.parametrize(("loader_per_s", "state"), [(24_000, "ok"), (6_000, "warning")])
def test_the_loader_feeds_the_devices_of_the_node(composed, loader_per_s, state):
    config = composed("model=resnet50", "hardware=gpu8", "hardware.workers=4")
    (found,) = judge_loader(loader_per_s, 3_000, config=config, device="a GPU")
    assert found.state == state and f"feeds {loader_per_s // 3_000} of them" in found.text
    # 32 threads feed two GPUs, so eight need 128
    assert state == "ok" or "request 128 cores" in present(found.remedy)


def test_the_device_is_timed_on_as_many_images_as_it_is_given(composed, monkeypatch):
    from tencrop.doctor import loading

    clock = iter(range(100))
    monkeypatch.setattr(loading, "MAX_STEP_S", 1e9)
    monkeypatch.setattr(loading.time, "perf_counter", lambda: next(clock))
    config = composed("model=lenet5", "data=digits", "hardware=cpu", "training.precision=fp32")
    per_s = device_images_per_s(config, derive_batches(config), num_classes=10, device=torch.device("cpu"))
    # the clock advances by one at each look: at the start, 19 times in between, and at the end
    assert per_s == 8 * 20 / 20
