import math

import numpy as np
import pytest
import torch
from timm.scheduler import CosineLRScheduler

from tencrop.config import Schedule
from tencrop.training.schedules import Plateau, after_evaluation, learning_rate


def rates(
    schedule: Schedule, *, epochs: float, steps_per_epoch: int = 10, base_lr: float = 0.1, num_steps: int | None = None
) -> list[float]:
    total = num_steps or round(epochs * steps_per_epoch)
    return [
        learning_rate(schedule, base_lr=base_lr, step=step, steps_per_epoch=steps_per_epoch, total_steps=total)
        for step in range(total)
    ]


def one_weight(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def test_steps_of_fb_resnet_torch():
    path = rates(Schedule("step", 0, milestones=[30, 60], gamma=0.1), epochs=90)
    assert path[0] == path[299] == 0.1
    assert path[300] == path[599] == pytest.approx(0.01)
    assert path[600] == path[899] == pytest.approx(0.001)


def test_cosine_with_warmup():
    path = rates(Schedule("cosine", 2, min_lr=0.01), epochs=12)
    assert path[0] == pytest.approx(0.1 / 20)
    assert path[19] == pytest.approx(0.1)
    assert path[20] == pytest.approx(0.1)
    assert path[20 + 50] == pytest.approx(0.055)  # halfway down
    assert path[-1] == pytest.approx(0.01 + 0.045 * (1 + math.cos(math.pi * 99 / 100)))
    assert sorted(path[20:], reverse=True) == path[20:]


def test_warmup_precedes_every_schedule():
    path = rates(Schedule("constant", 1), epochs=2)
    assert path == pytest.approx([0.01 * (step + 1) for step in range(10)] + [0.1] * 10)
    path = rates(Schedule("step", 1, milestones=[2], gamma=0.1), epochs=3)
    assert path[4] == pytest.approx(0.05) and path[10] == 0.1 and path[20] == pytest.approx(0.01)


def test_a_fraction_of_an_epoch_is_rounded_to_steps():
    path = rates(Schedule("step", 0.5, milestones=[1.5], gamma=0.5), epochs=2)
    assert path[4] == pytest.approx(0.1) and path[14] == pytest.approx(0.1) and path[15] == pytest.approx(0.05)


def test_plateau_drops_after_patience_and_at_most_max_drops_times():
    schedule = Schedule("plateau", 0, gamma=0.1, patience=2, max_drops=2)
    plateau, drops = Plateau(), []
    for error in (0.9, 0.8, 0.8, 0.85, 0.7, 0.75, math.nan, 0.8, 0.8, 0.8, 0.8):
        plateau = after_evaluation(plateau, error, schedule=schedule)
        drops.append(plateau.drops)
    assert drops == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert plateau.best_error == 0.7
    lr = learning_rate(schedule, base_lr=0.01, step=5, steps_per_epoch=1, total_steps=20, drops=plateau.drops)
    assert lr == pytest.approx(1e-4)


def timm_cosine(*, base_lr: float, length: int, num_values: int, **options) -> list[float]:
    """The learning rates that timm's own scheduler sets at 0, 1, ... (epochs or steps)."""
    optimizer = one_weight(base_lr)
    scheduler, path = CosineLRScheduler(optimizer, t_initial=length, **options), []
    for time in range(num_values):
        scheduler.step(time)
        path.append(optimizer.param_groups[0]["lr"])
    return path


def test_deit_with_timms_scheduler_over_all_300_epochs():
    """lr 5e-4 x 1,024 / 512, constant within an epoch, warm-up from 1e-6 in 5 epochs, the cosine from epoch 0."""
    schedule = Schedule("cosine", 5, min_lr=1e-5, unit="epoch", warmup_from=1e-6, cosine_from="start")
    path = rates(schedule, epochs=300, steps_per_epoch=4, base_lr=1e-3)
    options = {"warmup_t": 5, "warmup_lr_init": 1e-6, "lr_min": 1e-5}
    theirs = timm_cosine(base_lr=1e-3, length=300, num_values=300, **options)
    assert path == pytest.approx([lr for lr in theirs for _ in range(4)], rel=1e-12)
    # A cosine that starts after the warm-up, as Swin's, would be 2% higher at epoch 100.
    after = timm_cosine(base_lr=1e-3, length=295, num_values=300, **options, warmup_prefix=True)
    assert after[100] / theirs[100] == pytest.approx(1.02, abs=1e-3)


def test_swin_with_timms_scheduler_over_all_steps():
    """lr 1e-3 for 1,024 images, 20 of 300 epochs of warm-up from 5e-7 x 2, then the whole cosine, at every step."""
    schedule = Schedule("cosine", 20, min_lr=1e-5, warmup_from=1e-6)
    path = rates(schedule, epochs=300, steps_per_epoch=7, base_lr=1e-3)
    options = {"warmup_t": 140, "warmup_lr_init": 1e-6, "lr_min": 1e-5, "warmup_prefix": True}
    assert path == pytest.approx(timm_cosine(base_lr=1e-3, length=1960, num_values=2100, **options), rel=1e-12)


def test_big_vision_and_vit_over_all_steps():
    """big_vision's utils.create_learning_rate_schedule: 10,000 of 112,603 steps from 0, here 100 of 1,126."""
    path = rates(Schedule("cosine", 8, min_lr=0.0, warmup_from=0.0), epochs=0, steps_per_epoch=12, num_steps=1126)
    steps = np.arange(1126)
    cosine = 0.1 * 0.5 * (1 + np.cos(np.pi * np.clip((steps - 96) / (1126 - 96), 0, 1)))
    assert path == pytest.approx(cosine * np.minimum(1, steps / 96), rel=1e-12, abs=1e-18)


# lr of pycls' RegNetY-4.0GF, by its formula lr(e) = base 0.5 (1 + cos(pi e / E)) (e < 5 ? 0.1 (1 - e / 5) + e / 5 : 1)
# with base 0.4 and E = 100, computed with mpmath to 18 digits
PYCLS = {
    0: 0.04, 1: 0.111972367380480967, 3: 0.255431931469194242, 4: 0.326706811015574364, 5: 0.397537668119027545,
    20: 0.361803398874989485, 50: 0.2, 75: 0.0585786437626904951, 90: 0.00978869674096928558,
    99: 0.0000986879268536885999,
}  # fmt: skip


def test_pycls_at_ten_epochs():
    schedule = Schedule("cosine", 5, min_lr=0.0, unit="epoch", warmup_factor=0.1, cosine_from="start")
    path = rates(schedule, epochs=100, steps_per_epoch=3, base_lr=0.4)
    assert {epoch: path[3 * epoch] for epoch in PYCLS} == pytest.approx(PYCLS, rel=1e-12)
    assert path[::3] == path[1::3] == path[2::3]


def test_caffes_poly_is_a_line_to_zero_with_power_1():
    path = rates(Schedule("poly", 0, power=1.0), epochs=17, base_lr=0.04)  # SqueezeNet: 0.04, 170,000 steps
    assert path == pytest.approx([0.04 * (1 - step / 170) for step in range(170)], rel=1e-12)
    path = rates(Schedule("poly", 0, power=0.5), epochs=2)
    assert path == pytest.approx([0.1 * math.sqrt(1 - step / 20) for step in range(20)], rel=1e-12)


def test_tensorflows_exponential_decay_over_all_350_epochs():
    """EfficientNet: x0.97 every 2.4 epochs from the start; the warm-up of 5 epochs starts at 0 and replaces it."""
    schedule = Schedule("exponential", 5, gamma=0.97, decay_epochs=2.4, warmup_from=0.0)
    path = rates(schedule, epochs=350, steps_per_epoch=13, base_lr=0.256)
    steps = np.arange(350 * 13)
    decayed = 0.256 * 0.97 ** np.floor(steps / (2.4 * 13))
    assert path == pytest.approx(np.where(steps < 65, 0.256 * steps / 65, decayed), rel=1e-12)
    assert path[65] == pytest.approx(0.256 * 0.97**2)


def test_a_period_of_the_decay_starts_at_its_step_in_spite_of_rounding():
    assert 1.1 * 50 > 55
    path = rates(Schedule("exponential", 0, gamma=0.5, decay_epochs=1.1), epochs=4, steps_per_epoch=50)
    assert path[54] == 0.1 and path[55] == 0.05 and path[110] == 0.025 and path[165] == 0.0125


def test_ffcvs_cyclic_schedule():
    """ffcv-imagenet interpolates twice: over the epochs at both ends of an epoch, then over its steps."""
    path = rates(Schedule("piecewise", 0, knots=[0, 2, 16], factors=[1e-4, 1, 0]), epochs=16, base_lr=1.7)
    expected: list[float] = []
    for epoch in range(16):
        ends = np.interp([epoch, epoch + 1], [0, 2, 16], [1e-4 * 1.7, 1.7, 0])
        expected += np.interp(np.arange(10), [0, 10], ends).tolist()
    assert path == pytest.approx(expected, rel=1e-12)


def test_convmixers_onecycle_is_piecewise():
    """Its fork of timm: up in 2/5 of the epochs, down to 1/20 in 2/5, to 0 in the last fifth."""
    path = rates(Schedule("piecewise", 0, knots=[0, 60, 120, 150], factors=[0, 1, 0.05, 0]), epochs=150, base_lr=0.01)
    epochs = np.arange(1500) / 10
    expected = np.interp(epochs, [0, 150 * 2 // 5, 150 * 4 // 5, 150], [0, 0.01, 0.01 / 20.0, 0])
    assert path == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("total", "pct_start"), [(1, 0.3), (2, 0.3), (7, 0.3), (100, 0.3), (100, 0.03), (7, 0.9)])
def test_onecycle_of_torch(total, pct_start):
    schedule = Schedule("onecycle", 0, pct_start=pct_start, div_factor=25.0, final_div_factor=1e4)
    optimizer = one_weight(1.0)
    scheduler, expected = _torch_onecycle(optimizer, total, pct_start), []
    for _ in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < total:
            scheduler.step()
    assert rates(schedule, epochs=0, num_steps=total) == pytest.approx(expected, rel=1e-12)


def _torch_onecycle(optimizer: torch.optim.Optimizer, total: int, pct_start: float):
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.1, total, pct_start=pct_start, div_factor=25.0, final_div_factor=1e4, cycle_momentum=False
    )


def test_a_warmup_by_epochs_ends_with_the_full_rate_in_its_last_epoch():
    path = rates(Schedule("constant", 2, unit="epoch"), epochs=3, steps_per_epoch=2)
    assert path == pytest.approx([0.05, 0.05, 0.1, 0.1, 0.1, 0.1])


def test_with_a_budget_in_steps_the_last_epoch_may_be_short():
    schedule = Schedule("cosine", 0, min_lr=0.0, unit="epoch")
    path = rates(schedule, epochs=0, num_steps=25)  # 2.5 epochs
    assert path[20] == path[24] == pytest.approx(0.05 * (1 + math.cos(math.pi * 2 / 2.5)))
