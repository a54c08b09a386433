"""Parameters and multiply-adds of every file of conf/model, against the committed ones."""

import pytest

from tencrop.complexity import golden
from tencrop.complexity.networks import model_file, model_files

RENEW = "renew golden.json and docs/models.md with python -m tencrop.complexity.golden"


@pytest.mark.parametrize("name", model_files())
def test_counts_are_the_committed_ones(name):
    assert golden.counts_of(name) == golden.golden_counts().get(name), RENEW


def test_the_committed_files_name_every_network_and_nothing_else():
    counts = golden.golden_counts()
    assert sorted(counts) == model_files(), RENEW
    assert golden.GOLDEN.read_text() == golden.golden_text(counts), RENEW
    assert golden.DOCUMENT.read_text() == golden.HEADER + golden.markdown(counts), RENEW


@pytest.mark.parametrize("name", ["lenet5", "tf_efficientnet_b3", "resnet50", "squeezenet_1_0", "vgg_d"])
def test_a_model_file_is_read_as_train_composes_it(name, composed):
    config = composed(f"model={name}", "experiment=null")
    assert model_file(name) == (config.model, config.image_size)
