"""The learning rate of the recipes in conf/experiment over a whole run on ImageNet, at ten positions.

The golden values were computed by the formulas of the authors' code, which the comments state, without any of ours.
"""

import math
from collections.abc import Mapping
from typing import Any

import pytest

from tencrop.training.schedules import learning_rate, schedule_length

NUM_IMAGES = 1_281_167

DROPS = {0: 0.1, 10: 0.1, 29: 0.1, 30: 0.01, 45: 0.01, 59: 0.01, 60: 1e-3, 75: 1e-3, 80: 1e-3, 89: 1e-3}
DROPS_120 = {0: 0.1, 29: 0.1, 30: 0.01, 59: 0.01, 60: 1e-3, 75: 1e-3, 89: 1e-3, 90: 1e-4, 100: 1e-4, 119: 1e-4}

# By recipe and overrides: learning rates by epoch, at its first step (half an epoch: in its middle).
GOLDEN: dict[str, Mapping[Any, float]] = {
    # fb.resnet.torch: 0.1 * 0.1 ** floor((epoch - 1) / 30), with epochs from 1
    "wide_resnet50_2": DROPS,
    "densenet121": DROPS,
    "resnext50_32x4d": {epoch: lr for epoch, lr in DROPS_120.items() if epoch < 100} | {95: 1e-4, 99: 1e-4},
    # the same, with 1e-4 in the 30 epochs that are added
    "resnet152_stochastic_depth": DROPS_120,
    # He et al. 2016 divide by 10; the places of the drops are guesses
    "resnet34_b": DROPS_120,
    # timm's CosineLRScheduler with warmup_prefix=False, once an epoch: 1e-6 + (1e-3 - 1e-6) e / 5 before epoch 5, then
    # 1e-5 + (1e-3 - 1e-5) (1 + cos(pi e / 300)) / 2
    "deit_small_patch16_224": {
        0: 1e-6, 1: 0.0002008, 4: 0.0008002, 5: 0.0009993216197, 20: 0.0009891830624, 100: 0.0007525, 150: 0.000505,
        225: 0.0001549821433, 290: 1.271166179e-05, 299: 1.002714116e-05,
    },
    # the same over 1000 epochs
    "deit_base_distilled_patch16_224 training.epochs=1000": {
        0: 1e-6, 1: 0.0002008, 4: 0.0008002, 5: 0.0009999389331, 20: 0.0009990232306, 100: 0.0009757729756,
        300: 0.0007959536999, 500: 0.000505, 900: 3.422702443e-05, 999: 1.000244273e-05,
    },
    # fine-tuning: 1e-6 + (5e-6 - 1e-6) e / 5 before epoch 5, then a cosine from 5e-6 to 5e-6
    "deit_base_patch16_384": {
        0: 1e-6, 1: 1.8e-6, 2: 2.6e-6, 4: 4.2e-6, 5: 5e-6, 10: 5e-6, 15: 5e-6, 20: 5e-6, 25: 5e-6, 29: 5e-6,
    },
    # the same with warmup_prefix=True: 1e-6 + (1e-3 - 1e-6) e / 20, then 1e-5 + (1e-3 - 1e-5) (1 + cos(pi (e - 20) /
    # 280)) / 2
    "swin_tiny_patch4_window7_224": {
        0: 1e-6, 1: 5.095e-05, 10: 0.0005005, 19: 0.00095005, 20: 0.001, 90: 0.0008550178567, 160: 0.000505,
        230: 0.0001549821433, 290: 1.31124561e-05, 299: 1.003115691e-05,
    },
    # fine-tuning: 4e-8 + (4e-5 - 4e-8) e / 5, then 4e-7 + (4e-5 - 4e-7) (1 + cos(pi (e - 5) / 25)) / 2
    "swin_base_patch4_window12_384": {
        0: 4e-8, 1: 8.032e-06, 2: 1.6024e-05, 4: 3.2008e-05, 5: 4e-5, 10: 3.621853649e-05, 15: 2.631853649e-05,
        20: 1.408146351e-05, 25: 4.181463511e-06, 29: 5.56128914e-07,
    },
    # ConvNeXt's utils.cosine_scheduler: numpy.linspace(0, 4e-3, 6240)[312 e], then 1e-6 + (4e-3 - 1e-6) (1 + cos(pi
    # (e - 20) / 280)) / 2
    "convnext_tiny": {
        0: 0.0, 1: 0.0002000320564, 10: 0.002000320564, 19: 0.003800609072, 20: 0.004, 90: 0.003414360009,
        160: 0.0020005, 230: 0.000586639991, 290: 1.357243632e-05, 299: 1.125855019e-06,
    },
    # fine-tuning, where the warm-up has no steps: 1e-6 + (5e-5 - 1e-6) (1 + cos(pi e / 30)) / 2
    "convnext_base_384": {
        0: 5e-05, 1: 4.986578644e-05, 2: 4.946461622e-05, 4: 4.788186371e-05, 5: 4.671762239e-05, 10: 3.775e-05,
        15: 2.55e-05, 20: 1.325e-05, 25: 4.282377607e-06, 29: 1.134213563e-06,
    },
    # numpy.interp(e, [0, 2 E / 5, 4 E / 5, E], [0, 0.01, 0.01 / 20, 0])
    "convmixer_1536_20": {
        0: 0.0, 1: 0.0001666666667, 30: 0.005, 60: 0.01, 75: 0.007625, 90: 0.00525, 120: 0.0005, 130: 0.0003333333333,
        140: 0.0001666666667, 149: 1.666666667e-05,
    },
    "convmixer_768_32": {
        0: 0.0, 2: 0.0001666666667, 60: 0.005, 120: 0.01, 150: 0.007625, 180: 0.00525, 240: 0.0005,
        260: 0.0003333333333, 280: 0.0001666666667, 299: 8.333333333e-06,
    },
    # pycls' lr_policy.py, once an epoch: 0.4 (1 + cos(pi e / 100)) / 2, times 0.1 (1 - e / 5) + e / 5 before epoch 5
    "regnety_040": {
        0: 0.04, 1: 0.1119723674, 4: 0.326706811, 5: 0.3975376681, 20: 0.3618033989, 50: 0.2, 70: 0.08244294954,
        85: 0.02179869516, 95: 0.002462331881, 99: 9.868792685e-05,
    },
    # vision_transformer's create_learning_rate_schedule, at step s = 312 e: 3e-3 (1 + cos(pi max(0, s - 10000) /
    # 83600)) / 2, times min(1, s / 10000)
    "vit_base_patch16_224": {
        0: 0.0, 1: 9.36e-05, 16: 0.0014976, 32: 0.0029952, 33: 0.002999907204, 100: 0.002548635503,
        150: 0.001780186003, 225: 0.0005435165985, 290: 1.029817049e-05, 299: 1.03098576e-07,
    },
    # the same in fine-tuning, at step s = 2502 e: 0.03 (1 + cos(pi max(0, s - 500) / 19500)) / 2, times min(1, s / 500)
    "vit_base_patch16_384": {
        0: 0.0, 0.5: 0.02989034163, 1: 0.02922651536, 2: 0.02622124886, 3: 0.0214172857, 4: 0.01558467141,
        5: 0.009658337914, 6: 0.004588239751, 6.5: 0.002637422819, 7: 0.001187082233,
    },
    # Simonyan and Zisserman 2015 divide by 10 three times; the places of the drops are guesses. 370,000 steps end in
    # epoch 73.
    "vgg_d": {
        0: 0.01, 10: 0.01, 29: 0.01, 30: 1e-3, 49: 1e-3, 50: 1e-4, 64: 1e-4, 65: 1e-5, 70: 1e-5, 73: 1e-5,
    },
    # TensorFlow's exponential_decay with staircase, 0.256 * 0.97 ** floor(e / 2.4); before epoch 5, 0.256 e / 5
    "tf_efficientnet_b0": {
        0: 0.0, 1: 0.0512, 4: 0.2048, 5: 0.2408704, 8: 0.233644288, 12: 0.2198359106, 100: 0.07343127521,
        200: 0.02043120161, 300: 0.005684689503, 349: 0.003091301993,
    },
    # the same: 0.045 * 0.94 ** floor(e / 2.5)
    "mobilenet_v1_100": {
        0: 0.045, 2: 0.045, 3: 0.0423, 5: 0.039762, 7: 0.039762, 10: 0.0351337032, 30: 0.02141641417,
        60: 0.01019250657, 80: 0.006213035412, 99: 0.004029014257,
    },
    # the same: 0.045 * 0.94 ** floor(e / 2)
    "inception_v3_aux": {
        0: 0.045, 1: 0.045, 2: 0.0423, 3: 0.0423, 4: 0.039762, 10: 0.03302568101, 30: 0.01778813094,
        60: 0.007031502277, 80: 0.003787273401, 99: 0.002170087974,
    },
    # Caffe's poly, at step s = 2502 e: 0.04 (1 - s / 170000)
    "squeezenet_1_0": {
        0: 0.04, 1: 0.03941129412, 10: 0.03411294118, 20: 0.02822588235, 30: 0.02233882353, 40: 0.01645176471,
        50: 0.01056470588, 60: 0.004677647059, 65: 0.001734117647, 67: 0.0005567058824,
    },
    # 0.01 * 0.1 ** floor(s / 200000), at step s = 20018 e
    "allcnn": {
        0: 0.01, 5: 0.01, 8: 0.01, 9: 0.01, 10: 1e-3, 15: 1e-3, 19: 1e-3, 20: 1e-4, 21: 1e-4, 22: 1e-4,
    },
    # the same; the places of the drops are guesses
    "nin": {
        0: 0.01, 5: 0.01, 8: 0.01, 9: 0.01, 10: 1e-3, 15: 1e-3, 19: 1e-3, 20: 1e-4, 21: 1e-4, 22: 1e-4,
    },
    # every 8 epochs, as in Caffe's solver with a stepsize of 320,000: 0.01 * 0.96 ** floor(e / 8)
    "googlenet_2014": {
        0: 0.01, 7: 0.01, 8: 0.0096, 16: 0.009216, 50: 0.007827577897, 80: 0.00664832636, 120: 0.005420863799,
        160: 0.004420024339, 200: 0.003603967169, 249: 0.002821033375,
    },
    # Caffe's poly, at step s = 40036 e: 0.01 (1 - s / 2400000) ** 0.5
    "googlenet_caffe": {
        0: 0.01, 1: 0.009916240887, 5: 0.009573879395, 10: 0.009127887671, 20: 0.008163128485, 30: 0.007067885115,
        40: 0.005768304199, 50: 0.004073286961, 58: 0.0018017584, 59: 0.001256251036,
    },
    # GoogLeNet's, 6 times as fast: 0.045 * 0.96 ** floor(6 e / 8)
    "bn_inception": {
        0: 0.045, 1: 0.045, 2: 0.0432, 3: 0.041472, 4: 0.03981312, 20: 0.02439388709, 50: 0.009936836322,
        80: 0.003885854152, 120: 0.001141887943, 149: 0.00048452856,
    },
    # LeCun et al. 1998: 0.0005, 0.0002, 0.0001, 0.00005 and 0.00001 for 2, 3, 3, 4 and 8 passes, times 8
    "lenet5_mnist": {
        0: 0.004, 1: 0.004, 2: 0.0016, 4: 0.0016, 5: 8e-4, 7: 8e-4, 8: 4e-4, 11: 4e-4, 12: 8e-5, 19: 8e-5,
    },
    # divided by 10; the places of the drops are guesses
    "fractalnet34": {
        0: 1e-3, 10: 1e-3, 20: 1e-3, 34: 1e-3, 35: 1e-4, 45: 1e-4, 52: 1e-4, 53: 1e-5, 60: 1e-5, 69: 1e-5,
    },
    # big_vision's create_learning_rate_schedule, as that of ViT, at step s = 1251 e of 112,603
    "vit_small_patch16_plain": {
        0: 0.0, 1: 0.0001251, 4: 0.0005004, 7: 0.0008757, 8: 0.000999999985, 20: 0.0009480493049,
        45: 0.0005763469681, 70: 0.0001398228476, 85: 9.180031458e-06, 90: 3.961013606e-11,
    },
    # ffcv-imagenet's get_cyclic_lr: numpy.interp(e, [0, 2, E], [1e-4 lr, lr, 0]), in a line within the epoch
    "ffcv_rn50": {
        0: 0.00017, 1: 0.850085, 2: 1.7, 3: 1.578571429, 4: 1.457142857, 5: 1.335714286, 8: 0.9714285714,
        11: 0.6071428571, 13: 0.3642857143, 15: 0.1214285714,
    },
    "ffcv_rn18": {
        0: 5e-05, 1: 0.250025, 2: 0.5, 3: 0.4642857143, 4: 0.4285714286, 5: 0.3928571429, 8: 0.2857142857,
        11: 0.1785714286, 13: 0.1071428571, 15: 0.03571428571,
    },
    # mmpretrain's imagenet_bs2048_rsb.py: lr (1e-4 + (1 - 1e-4) e / 5) before epoch 5, then 1e-6 + (lr - 1e-6)
    # (1 + cos(pi (e - 5) / (E - 5))) / 2
    "rsb_a1": {
        0: 5e-07, 1: 0.0010004, 3: 0.0030002, 5: 0.005, 50: 0.004929778532, 150: 0.004302559381, 300: 0.002533492365,
        450: 0.0007447899108, 550: 8.759745541e-05, 599: 1.034840787e-06,
    },
    "rsb_a2": {
        0: 5e-07, 1: 0.0010004, 3: 0.0030002, 5: 0.005, 50: 0.004718436512, 100: 0.00382628706, 150: 0.002567037993,
        225: 0.0007567700129, 290: 1.516016687e-05, 299: 1.141734232e-06,
    },
    "rsb_a3": {
        0: 8e-07, 1: 0.00160064, 3: 0.00480032, 5: 0.008, 10: 0.007945452033, 30: 0.006709287646, 50: 0.004330776092,
        70: 0.001812980842, 90: 0.0002177039418, 99: 3.186697265e-06,
    },
}  # fmt: skip
# ConvNeXt's warm-up has 6,239 steps to lr, ours 6,240; its recipe says so.
TOLERANCE = {"convnext_tiny": 1.7e-4}


@pytest.mark.parametrize("words", GOLDEN)
def test_learning_rate_at_ten_positions(words, composed):
    config, golden = composed(*f"experiment={words}".split()), GOLDEN[words]
    steps_per_epoch = NUM_IMAGES // config.training.global_batch
    total_steps = schedule_length(config.training, steps_per_epoch)
    ours = {
        epoch: learning_rate(
            config.schedule,
            base_lr=config.optimizer.lr,
            step=round(epoch * steps_per_epoch),
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps,
        )
        for epoch in golden
    }
    assert len(golden) == 10 and math.ceil(total_steps / steps_per_epoch) == max(golden) + 1
    assert ours == pytest.approx(golden, rel=TOLERANCE.get(words, 1e-9))


@pytest.mark.parametrize(
    ("model", "is_constant"),
    [("regnety_040", True), ("deit_small_patch16_224", True), ("swin_tiny_patch4_window7_224", False)],
)
def test_learning_rate_within_an_epoch(model, is_constant, composed):
    """pycls and DeiT set it once an epoch, Swin at every step."""
    config = composed(f"experiment={model}")
    first, last = (
        learning_rate(config.schedule, base_lr=1.0, step=step, steps_per_epoch=100, total_steps=10_000)
        for step in (3_000, 3_099)
    )
    assert (first == last) is is_constant


@pytest.mark.parametrize(("model", "num_epochs"), [("alexnet_2012", 90), ("zfnet", 70)])
def test_lowered_by_tens_when_the_error_stops_improving(model, num_epochs, composed):
    config = composed(f"experiment={model}")
    assert (config.schedule.max_drops, config.training.epochs) == (3, num_epochs)
    path = [
        learning_rate(config.schedule, base_lr=config.optimizer.lr, step=0, steps_per_epoch=1, total_steps=9, drops=n)
        for n in range(4)
    ]
    assert path == pytest.approx([0.01, 0.001, 1e-4, 1e-5])
