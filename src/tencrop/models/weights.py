"""Load weights from checkpoints and weight files of any origin without executing code, and apply them to a network.

Weight files are not trusted: torch.load of a plain pickle runs whatever code the pickle names. Weights are applied
completely or not at all: a network with a few random layers would still give plausible error rates.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from tencrop.config import UserError
from tencrop.config.documents import NotEmpty, parse_json
from tencrop.config.schema import MEAN_IMAGES
from tencrop.data.augmentation.mean_image import USE, array_sha256
from tencrop.models.checkpoint_files import load_checked, weights_sha256, with_prefix
from tencrop.models.mappings import (
    COUNTER,
    FFCV_KERNEL,
    OUR_KERNEL,
    pair_by_order,
    same_in_torchvision,
    to_own_names,
)

# Keys under which checkpoints store their weights: ours, timm's, those of torchvision's reference scripts, and other
# common ones. The first key whose value is a state dict is used.
RAW_KEYS = ("state_dict", "model", "model_state_dict", "net", "module")
EMA_KEYS = ("ema_state_dict", "state_dict_ema", "model_ema", "ema")
EMA_COUNTER = "n_averaged"  # counter that torch's AveragedModel (torchvision's EMA) stores beside the weights
# Key of a .safetensors file's metadata under which export.py writes how images are preprocessed: JSON of this shape
PREPROCESSING_KEY = "tencrop_preprocessing"
PREPROCESSING_SHAPE = {
    "source": str,  # what wrote it
    "mean": NotEmpty(float),  # on [0, 255], one per channel
    "std": NotEmpty(float),
    "filter": str,
    "size": int,  # pixels: height and width of the crop
    "side": (int, None),  # pixels: shorter side that images are rescaled to; null: not rescaled
    "weights_sha256?": str,  # of the tensors in the file; export.py writes it, and load_weights compares it
    # of the image that is subtracted in place of `mean`, in a file of its own beside the weights
    "mean_image?": {"use": set(MEAN_IMAGES), "sha256": str},
}
MEAN_IMAGE_FILE, MEAN_IMAGE_TENSOR = "mean_image.safetensors", "mean_image"  # float32 [S, S, 3], RGB on [0, 255]
REMEDY = "choose the model, and data with the number of classes, that they were trained with"
NUM_NAMED = 3  # an error message lists at most this many names, then "and N more"


class IgnoredObject:
    """Placeholder for a checkpoint's object that is not needed: accepts any arguments and state, and keeps nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


# Classes that checkpoints of timm, torchvision's reference scripts and others store beside the weights: arguments,
# paths, numpy scalars and arrays. The unpickler replaces their objects by IgnoredObject; it raises on any other class.
IGNORED_CLASSES = (
    "argparse.Namespace",
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(f"pathlib._local.{name}" for name in ("Path", "PosixPath", "WindowsPath")),  # pickled by Python 3.13
    # numpy 2 renamed numpy.core to numpy._core; a file names the one of the numpy that wrote it
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray"),
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float16", "Float32", "Float64", "Int32", "Int64", "Bool")),
)


class Weights(NamedTuple):
    """A state dict from a file, with the parameter names of that file."""

    state: dict[str, Tensor]
    kind: str  # raw | ema: the weights themselves, or their exponential moving average
    metadata: dict[str, Any]  # of our checkpoints (training/classifier.py); empty for other files
    preprocessing: dict[str, Any]  # of files that export.py wrote (PREPROCESSING_KEY); empty for other files


def load_weights(path: Path, *, ema: bool | None = None) -> Weights:
    """Load the weights of a .safetensors file, a plain state dict (.pth) or a checkpoint, on the CPU.

    ema: True requires the moving average (EMA); False takes the raw weights; None takes the EMA if the file has one,
    otherwise the raw weights.
    Raises UserError if the file is missing or broken, if it lacks the requested weights, or if it contains anything but
    tensors, plain values and objects of IGNORED_CLASSES. Objects of these classes are never built. Also raises
    UserError if a tencrop checkpoint is damaged, or belongs to a different run than the folder it is in.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of weights")
    content: Any
    preprocessing: dict[str, Any] = {}
    if path.suffix == ".safetensors":
        content, preprocessing = _read_safetensors(path)
    else:
        content = _read_torch(path)
    content = content if isinstance(content, Mapping) else {}
    metadata: dict[str, Any] = content.get("tencrop", {})
    if metadata:  # our checkpoints keep raw weights, EMA and counters in one state dict, with a prefix for each
        raw, average = (with_prefix(content["state_dict"], prefix) for prefix in ("model.", "ema."))
    else:
        raw = content if _is_state(content) else _first_state(content, RAW_KEYS)
        average = _first_state(content, EMA_KEYS)
    if ema and average is None:
        raise UserError(f"{path}: holds no EMA weights; leave out ema=true")
    if average is not None and ema is not False:
        return Weights(average, "ema", metadata, preprocessing)
    if raw is None:
        keys = ", ".join(str(key) for key in content) or "nothing"
        raise UserError(f"{path}: no state dict was found in it (but {keys}); save model.state_dict()")
    return Weights(raw, "raw", metadata, preprocessing)


def statistics_of(weights: Weights, path: Path) -> dict[str, Any]:
    """The mean, std and mean image that the weights in `path` were trained with; empty if the file does not have them.

    export.py's files have them only if they subtract a mean image, which then must lie beside the file (UserError).
    The numbers in all other files of export.py are part of the configuration, as a publisher's are.
    """
    if "mean_image" not in weights.preprocessing:
        return weights.metadata
    image = _read_mean_image(path.with_name(MEAN_IMAGE_FILE), weights.preprocessing["mean_image"]["sha256"], of=path)
    return {**weights.preprocessing, "mean_image": image, USE: weights.preprocessing["mean_image"]["use"]}


def apply_weights(
    network: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    name: str,
    num_classes: int | None = None,
    by: str = "name",
    remedy: str = REMEDY,
) -> Mapping[str, str]:
    """Copy `state` into `network`; names and shapes must match exactly.

    by: "name" first removes prefixes of wrappers, and renames the weights of torchvision and of the networks' authors.
    "order" ignores the names: the tensors must have the same shapes in the same order, and the result maps the
    network's names to those of the file (otherwise it is empty). Raises UserError that lists the first differences; its
    message names `source` (the file), `name` (the network) and num_classes, and ends in `remedy`.
    """
    described = name if num_classes is None else f"{name} ({num_classes} classes)"
    expected, pairs = network.state_dict(), dict[str, str]()
    state = {key: value for key, value in state.items() if key != EMA_COUNTER or key in expected}
    if by == "order":
        pairs = pair_by_order(state, expected, source=source, name=described)
        state = {key: state[theirs] for key, theirs in pairs.items()}
    else:
        state = under_own_names(state, expected, name=name)
        check_weights(state, expected, source=source, name=described, remedy=remedy)
    # strict=False only because num_batches_tracked may be missing; every other difference has been rejected
    network.load_state_dict(state, strict=False)
    return pairs


def under_own_names(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, name: str) -> Mapping[str, Tensor]:
    """`state` without prefixes of wrappers and under the names of network `name`, if it is a known file of it."""
    return to_own_names(_without_prefixes(state, expected), expected, name=name)


def torchvision_name(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, name: str) -> str | None:
    """torchvision's name of our network `name` if `state` is of torchvision's version of it, else None."""
    return same_in_torchvision(_without_prefixes(state, expected), name=name)


def check_weights(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str, name: str, remedy: str = REMEDY
) -> None:
    """Raise UserError listing the first names and shapes of `state` (file) that differ from `expected` (network)."""
    # Files older than torch 0.4.1 lack BatchNorm's num_batches_tracked, which the default momentum does not use.
    missing = [key for key in expected if key not in state and not key.endswith(COUNTER)]
    unexpected = [key for key in state if key not in expected]
    reshaped = [
        f"{key} is {list(state[key].shape)} instead of {list(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    differences = [
        f"{label}{', '.join(keys[:NUM_NAMED])}"
        + (f" and {len(keys) - NUM_NAMED} more" if len(keys) > NUM_NAMED else "")
        for label, keys in (("missing: ", missing), ("unexpected: ", unexpected), ("", reshaped))
        if keys
    ]
    if any(key.endswith((FFCV_KERNEL, OUR_KERNEL)) for key in unexpected):
        remedy = "they are of a network with blur pooling; set model.blur_pool=true"
    if differences:
        raise UserError(f"{source}: its weights do not fit {name}: {'; '.join(differences)}; {remedy}")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and the preprocessing that export.py wrote beside them."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(PREPROCESSING_KEY)
        state, facts = load_file(path), {} if text is None else parse_json(text.encode(), PREPROCESSING_SHAPE)
        expected = facts.pop("weights_sha256", None)
        if expected not in (None, weights_sha256(state)):
            raise ValueError("its weights are not those that were written")
        return state, facts
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: is a broken .safetensors file ({error})") from error


def _read_mean_image(path: Path, sha256: str, *, of: Path) -> Tensor:
    remedy = "copy it from the folder that export.py wrote the weights into"
    if not path.is_file():
        raise UserError(f"{path}: there is no such file, but {of.name} needs its mean image; {remedy}")
    try:
        image = load_file(path).get(MEAN_IMAGE_TENSOR)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: is a broken .safetensors file ({error}); {remedy}") from error
    if image is None or image.shape[1:] != (len(image), 3) or array_sha256(image) != sha256:
        raise UserError(f"{path}: is not the mean image of {of.name}; {remedy}")
    return image


def _read_torch(path: Path) -> Any:
    # torch accepts (class, "module.name") pairs: where a pickle refers to "module.name", `class` is used instead
    ignored: list[Any] = [(IgnoredObject, name) for name in IGNORED_CLASSES]
    with warnings.catch_warnings(action="ignore", category=UserWarning), torch.serialization.safe_globals(ignored):
        try:
            return load_checked(path)
        except UserError:
            raise
        except PermissionError as error:
            raise UserError(f"{path}: cannot be read ({os.strerror(error.errno or 0)})") from error
        except Exception as error:  # on damaged bytes, torch's unpickler can raise almost any exception
            # torch names the class that it refused to build: "Unsupported global: GLOBAL module.name was not ..."
            found = re.search(r"GLOBAL (\S+)", str(error))
            raise UserError(
                f"{path}: cannot be read as weights: "
                + (
                    f"it holds {found[1]}, which could run code when read"
                    if found
                    else "it is broken, or another kind of file"
                )
                + "; save only the tensors, preferably as .safetensors"
            ) from error


def _first_state(content: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Tensor] | None:
    found = [content[key] for key in keys if key in content]
    return next((state for state in found if _is_state(state)), None)


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping) and bool(content) and all(isinstance(value, Tensor) for value in content.values())
    )


def _without_prefixes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove what wrappers add to every name: DistributedDataParallel module., torch.compile _orig_mod., others model.

    Wrappers nest ("module.backbone."), hence the loop. It ends before a name of the network, which may itself have a
    submodule called "model" or "backbone".
    """
    state = dict(state)
    while state and not state.keys() & expected.keys():
        prefixes = {key.partition(".")[0] + "." for key in state}
        prefix = prefixes.pop()
        if prefixes or not all(key.startswith(prefix) for key in state):
            break  # not one that every name has
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
