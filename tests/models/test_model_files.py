"""Files of conf/model: printed errors said alike, resolutions, first scales, what DeiT's two heads learn from."""

import re

import pytest
import torch
import yaml
from torch import nn

from tencrop.config.verbs import CONF
from tencrop.models.factory import build_model
from tencrop.tables.reading import read_rows, read_tables

FILES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))


@pytest.fixture
def network_of(composed):
    def build(name, num_classes=1000):
        return build_model(composed(f"model={name}").model, num_classes=num_classes)

    return build


# a paper's series of conf/published_errors.yaml, and a network in it
PRINTED = {
    name: reference
    for series in yaml.safe_load((CONF / "published_errors.yaml").read_text())
    for name, reference in series["rows"].items()
}
CLAIMS = {
    name: claim
    for name in FILES
    if (claim := yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text()).get("claim"))
}


@pytest.mark.parametrize("name", [name for name in PRINTED if name not in CLAIMS])
def test_a_model_file_says_the_published_error_of_the_figure(name):
    """In its opening comment."""
    ((_, row),) = read_rows([PRINTED[name]])
    text = (CONF / "model" / f"{name}.yaml").read_text()
    comment = " ".join(line for line in text.splitlines() if line.startswith("#"))
    assert float(row.printed["top1"]) in [float(number) for number in re.findall(r"\d+\.\d+", comment)]


def test_a_claim_is_what_a_table_prints():
    """Of the row that the file's own command trains, under the claim's protocol; the table's source is the claim's."""
    printed = {}
    for table in read_tables():
        for row in table.rows:
            if row.words is not None and row.protocol is not None and table.unit == "error":
                (model,) = (word.removeprefix("model=") for word in row.words)
                errors = tuple(None if value is None else float(value) for value in row.printed.values())
                printed.setdefault((model, row.protocol.name), []).append((table.source, *errors))
    assert len(CLAIMS) == 15
    for name, claim in CLAIMS.items():
        source = claim["source"].partition(", table")[0]
        assert (source, claim["top1_error"], claim["top5_error"]) in printed[name, claim["protocol"]], name


SIDES = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600}


@pytest.mark.parametrize("name", [name for name in FILES if "efficientnet" in name or name.endswith("384")])
def test_images_of_the_papers_resolution(name, composed):
    config = composed(f"model={name}")
    assert config.image_size == SIDES.get(name[-2:], 384)
    assert config.augmentation.size == config.protocol.size == config.image_size
    if "efficientnet" in name:
        assert config.short_side == config.image_size + 32


@pytest.mark.parametrize("name", ["regnetx_002", "resnext50_32x4d", "wide_resnet50_2"])
def test_no_batch_norm_starts_at_0(name, network_of):
    for module in network_of(name).modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.all(module.weight == 1)


@pytest.mark.parametrize("is_training", [True, False])
def test_both_heads_of_a_distilled_deit_learn_from_the_labels(is_training, network_of):
    """timm gives the mean of their logits, one tensor, in training too: our loss takes it."""
    torch.manual_seed(0)
    network = network_of("deit_tiny_distilled_patch16_224", num_classes=4).train(is_training)
    logits = network(torch.randn(2, 3, 224, 224))
    assert isinstance(logits, torch.Tensor) and logits.shape == (2, 4)
    nn.functional.cross_entropy(logits, torch.tensor([0, 3])).backward()
    for parameter in (network.head.weight, network.head_dist.weight, network.cls_token, network.dist_token):
        assert parameter.grad is not None and parameter.grad.any()
