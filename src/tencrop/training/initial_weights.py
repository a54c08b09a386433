"""Start a training from the weights of another run or of a file (training.init), instead of those that the seed draws.

The command train calls `read_initial_weights`, and `build` in fit.py applies the result. A run that resumes takes its
weights from its own checkpoint, so the source may be gone by then.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from timm.layers import resample_abs_pos_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from timm.models.swin_transformer import WindowAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tencrop.config import Model, UserError
from tencrop.config.initialization import source_file
from tencrop.config.schema import Init
from tencrop.models.checkpoint_files import weights_sha256
from tencrop.models.factory import create_network
from tencrop.models.last_layer import last_layers
from tencrop.models.name_patterns import matching_names
from tencrop.models.weights import check_weights, load_weights, under_own_names

# ConvNeXt's head_init_scale for fine-tuning. Its code scales a new last layer: loaded weights replace the scaled ones.
HEAD_SCALE = 0.001
REMEDY = (
    "choose the model that they were trained with; other classes need training.init.head=new, another image size"
    " training.init.resize=true, and another network training.init.only=[PATTERN,...]"
)


class InitialWeights(NamedTuple):
    """The source of training.init, read from disk."""

    state: dict[str, Tensor]
    facts: dict[str, str]  # for the run's manifest: path, raw or ema, and digest of the weights


def read_initial_weights(init: Init, run_dir: Path) -> InitialWeights | None:
    """The weights of init.checkpoint; a checkpoint with EMA weights gives these, as in evaluation.

    None without init.checkpoint, or if the source is gone and run_dir has a checkpoint to resume from. Raises UserError
    for a source that is missing, broken or damaged.
    """
    if (path := source_file(init, run_dir)) is None:
        return None
    weights = load_weights(path)
    digest = weights_sha256(weights.state)
    return InitialWeights(weights.state, {"checkpoint": str(path), "weights": weights.kind, "weights_sha256": digest})


def apply_initial_weights(
    network: nn.Module, initial: InitialWeights, init: Init, *, model: Model, num_classes: int
) -> None:
    """Copy the weights that `init` asks for into `network`; all others keep the values that the seed has drawn.

    model: what `network` was built from. Names and shapes of the copied weights must match. Raises UserError if they do
    not, or if init.resize has nothing to resize.
    """
    name, expected, source = model.name, network.state_dict(), initial.facts["checkpoint"]
    head = {} if init.head == "keep" else _head(network, model, num_classes)
    new = {f"{prefix}.{weight}" for prefix, layer in head.items() for weight in layer.state_dict()}
    wanted = {key: value for key, value in expected.items() if key not in new}
    state = {key: value for key, value in under_own_names(initial.state, expected, name=name).items() if key not in new}
    if init.only:
        chosen = matching_names(init.only, expected, key="training.init.only", network=name)
        wanted, state = ({key: part[key] for key in part if key in chosen} for part in (wanted, state))
    if init.resize:
        state = _resized(state, network, name=name, source=source)
    check_weights(state, wanted, source=source, name=name, remedy=REMEDY)
    network.load_state_dict(state, strict=False)  # what is missing is to keep the seed's values
    if init.head == "scaled":
        for parameter in (parameter for layer in head.values() for parameter in layer.parameters()):
            parameter.detach().mul_(HEAD_SCALE)


def _head(network: nn.Module, model: Model, num_classes: int) -> dict[str, nn.Module]:
    """The layers whose number of outputs follows the number of classes, by name."""
    # A hidden layer may have as many outputs by chance, as ResNet's first 64 do, but it does not grow with the classes.
    with torch.device("meta"):  # shapes only: nothing is allocated or drawn
        larger = create_network(model, num_classes=num_classes + 1)
    of_larger = last_layers(larger, num_classes + 1)
    grown = {name for name, layer in larger.named_modules() if layer in of_larger}
    candidates = last_layers(network, num_classes)
    return {name: layer for name, layer in network.named_modules() if layer in candidates and name in grown}


def _resized(state: Mapping[str, Tensor], network: nn.Module, *, name: str, source: str) -> dict[str, Tensor]:
    """`state` with position embeddings and bias tables of the network's size, resampled as timm does."""
    expected = network.state_dict()
    resized = {
        key: _resample(value, network.get_submodule(key.rpartition(".")[0]), key.rpartition(".")[2])
        for key, value in state.items()
        if key in expected and value.shape != expected[key].shape
    }
    if not resized:
        raise UserError(f"training.init.resize=true: {source} has the shapes of {name} already; set it to false")
    return {**state, **resized}


def _resample(value: Tensor, layer: nn.Module, weight: str) -> Tensor:
    """The tensor at the layer's own size; unchanged if it is no position embedding and no bias table."""
    if weight == "pos_embed" and isinstance(layer, VisionTransformer):
        # bicubic over the grid of patches; class and distillation tokens have no place in it
        num_tokens = 0 if layer.no_embed_class else layer.num_prefix_tokens
        return resample_abs_pos_embed(value, list(layer.patch_embed.grid_size), num_prefix_tokens=num_tokens)
    if weight == "relative_position_bias_table" and isinstance(layer, WindowAttention):
        # [(2 h - 1) (2 w - 1), heads] for a window of h x w patches
        shape = tuple(layer.relative_position_bias_table.shape)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # timm's interpolation indexes by a list
            return resize_rel_pos_bias_table(value, new_window_size=layer.window_size, new_bias_shape=shape)
    return value
