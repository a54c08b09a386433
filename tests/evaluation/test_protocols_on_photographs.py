"""Every protocol on photographs of ImageNet with published weights, against a loop of timm and Pillow alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from tencrop.config import Config
from tencrop.data.preparation.prepare import prepare
from tencrop.evaluation.evaluate import evaluate_targets
from tencrop.evaluation.targets import evaluation_targets

SHARED = Path(__file__).parents[3] / "shared" / "data"
WEIGHTS = SHARED / "weights" / "efficientnet_lite0.safetensors"
SIZE, SIDE = 224, 256
WORDS = ["model=timm", "model.name=tf_efficientnet_lite0", "data=imagefolder", "hardware=cpu"]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the images and weights of {SHARED}")
def test_the_scores_of_every_protocol(
    composed: Callable[..., Config], data_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve images of various sizes, one of them 320 x 685. Softmax to 5e-6, because batches of other sizes round."""
    monkeypatch.chdir(tmp_path)
    folders = ("imagenet_sample", "imagenet_sample")
    root = prepare(data_config(SHARED, tmp_path / "prepared", splits=folders), workers=2, progress=False)
    files = sorted(SHARED.glob("imagenet_sample/*/*.JPEG"))
    chosen = [*files[7::100], files[546], files[0]]
    Path("chosen.txt").write_text("".join(f"{file.parent.name}/{file.name}\n" for file in chosen))
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(load_file(WEIGHTS))
    with torch.inference_mode():
        loop = [softmax_of_protocols(network, normalized(file)) for file in sorted(chosen)]
    for name in loop[0]:
        words = [*WORDS, f"data.root={root}", "data.subset_of_val=chosen.txt", f"protocol={name}"]
        targets = evaluation_targets(composed(*words, f"+weights={WEIGHTS}"), [*words, f"weights={WEIGHTS}"])
        (found,) = evaluate_targets(targets)
        expected = torch.stack([scores[name] for scores in loop])
        assert (found.scores.softmax - expected).abs().max() < 5e-6, name


def softmax_of_protocols(network: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Mean softmax [K] over the views of an image [1, 3, H, W], by protocol."""
    height, width = image.shape[2] - SIZE, image.shape[3] - SIZE
    places = [(0, 0), (0, width), (height, 0), (height, width), (round(height / 2), round(width / 2))]
    crops = [image[:, :, top : top + SIZE, left : left + SIZE] for top, left in places]
    plain, mirrored = (network(torch.cat(views)).softmax(1) for views in (crops, [crop.flip(3) for crop in crops]))
    whole = torch.cat([scores_of_whole(network, one) for one in (image, image.flip(3))]).softmax(1)
    return {
        "center": plain[4],
        "flip_pair": (plain[4] + mirrored[4]) / 2,
        "five_crop": plain.mean(0),
        "ten_crop": (plain.mean(0) + mirrored.mean(0)) / 2,
        "dense": whole.mean(0),
    }


def scores_of_whole(network: nn.Module, image: Tensor) -> Tensor:
    """Logits [1, K]: the mean over all positions of the last layer's 7 x 7 pooling window."""
    assert isinstance(network, timm.models.EfficientNet)
    pooled = nn.functional.avg_pool2d(network.forward_features(image), 7, stride=1)
    return network.classifier(pooled.permute(0, 2, 3, 1)).mean((1, 2))


def normalized(file: Path) -> Tensor:
    """The image with a shorter side of SIDE, on [-1, 1], [1, 3, H, W]."""
    image = Image.open(file).convert("RGB")
    width, height = (SIDE * length // min(image.size) for length in image.size)
    # Two calls: in one, Pillow 13 resizes tall images vertically first, which rounds differently.
    image = image.resize((width, image.height), Image.Resampling.BICUBIC)
    pixels = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float().sub(127.5).div(127.5)
