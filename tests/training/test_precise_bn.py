"""The final running statistics are plain means over training images, on any number of devices."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tencrop.config import Batches, UserError, derive_batches
from tencrop.data.augmentation.batch import Batch
from tencrop.data.sampling.sampler import epoch_order
from tencrop.data.store.manifest import read_manifest
from tencrop.models.checkpoint_files import with_prefix
from tencrop.models.factory import build_model
from tencrop.training.batchnorm import set_exact_statistics, set_groups
from tencrop.training.checkpoints import read_checkpoint
from tencrop.training.fit import build, fit
from training import runs
from typed import layer_at, present, stand_in

PRECISE = ("training.precise_bn=12", "model.kwargs.drop_rate=0", "training.epochs=2")
NUM_GROUPS = 6  # of two images


def exact_means(network: nn.Module, groups: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """One pass of a network of torch's own layers: mean and unbiased variance of each group, summed and divided."""
    sums: dict[str, torch.Tensor] = {}

    def add(prefix: str):
        def hook(layer, inputs):
            values = inputs[0].transpose(0, 1).flatten(1)
            for name, value in (("running_mean", values.mean(1)), ("running_var", values.var(1))):
                key = f"{prefix}.{name}"
                sums[key] = sums.get(key, torch.zeros_like(value)) + value

        return hook

    for prefix, layer in network.named_modules():
        if isinstance(layer, _BatchNorm):
            layer.register_forward_pre_hook(add(prefix))
    with torch.no_grad():
        for group in groups:
            network.train()(group)
    return {key: value / len(groups) for key, value in sums.items()}


def test_a_run_ends_with_exact_means_for_its_weights_and_their_average(prepared_photos, tmp_path):
    config = runs.recipe(prepared_photos, *PRECISE)
    data, classifier = build(config, batches=derive_batches(config), manifest=read_manifest(prepared_photos))
    state = read_checkpoint(fit(data, classifier, run_dir=tmp_path).checkpoint)["state_dict"]
    torch.use_deterministic_algorithms(False)  # fit() has switched them on, and it ran in this process
    index, groups = [], []
    for batch in data.precise_bn_batches(2, torch.device("cpu")):  # of the epoch that would have come next
        index.append(batch.index)
        groups.append(classifier.training_inputs(batch).clone())  # the loader uses its memory again
    assert np.array_equal(np.concatenate(index), epoch_order(data.train_index, seed=0, epoch=2)[:12])
    assert [len(group) for group in groups] == [2] * NUM_GROUPS
    for prefix in ("model.", "ema."):
        found = present(with_prefix(state, prefix))
        network = build_model(config.model, num_classes=3)
        network.load_state_dict(found)
        expected = exact_means(network, groups)
        assert expected.keys() == {name for name in found if "running" in name}
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=prefix + name)


def test_devices_and_micro_batches_do_not_change_the_means(train):
    states = []
    for num_ranks in (1, 2):
        options = (*PRECISE, "model.kwargs.drop_rate=0.2", "training.global_batch=4", "training.epochs=1")
        layout = f"hardware.devices={num_ranks}"
        run = train(f"on {num_ranks}", *options, layout, num_ranks=num_ranks, float64=True)
        assert run.exit_codes == [0] * num_ranks
        assert all(run.result(rank)["weights_sha256"] == run.result()["weights_sha256"] for rank in range(num_ranks))
        states.append(read_checkpoint(run.last)["state_dict"])
    for name, value in states[0].items():
        if "running" in name:
            torch.testing.assert_close(states[1][name], value, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("kind", ["ghost", "sync"])
def test_momenta_of_a_mean_and_the_layers_own_afterwards(kind):
    """Synchronized layers, which need GPUs to train, work on a CPU in a single process."""
    layers = nn.Sequential(nn.BatchNorm1d(3, momentum=0.3), nn.BatchNorm1d(3)).double()
    network = set_groups(layers, Batches(1, 8, 4, 2, kind, 1))
    layer, frozen = (layer_at(network, name, _BatchNorm) for name in ("0", "1"))
    frozen.eval()
    images = torch.randn(6, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batches = [stand_in(Batch, images=part) for part in images]
    set_exact_statistics([network], batches, lambda net, batch, _: net(batch.images), accumulate_grad_batches=2)
    torch.testing.assert_close(layer.running_mean, images.mean(1).mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.running_var, images.var(1).mean(0), rtol=1e-12, atol=1e-12)
    assert layer.momentum == 0.3
    assert torch.equal(present(frozen.running_mean), torch.zeros(3).double())


def test_more_images_than_an_epoch_has_are_refused(prepared_photos):
    config = runs.recipe(prepared_photos, "training.precise_bn=24")
    with pytest.raises(UserError, match=r"training\.precise_bn=24: an epoch has only 18 images; set it to at most"):
        build(config, batches=derive_batches(config), manifest=read_manifest(prepared_photos))
