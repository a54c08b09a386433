"""Weights from files, ours or anyone's, read without executing anything, and applied only where they fit.

Called by evaluate.py and its processes.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tencrop.config import UserError
from tencrop.models.checkpoint_files import load_checked, with_prefix
from tencrop.models.mappings import in_own_names

# under which keys a checkpoint keeps its weights: ours, timm's, torchvision's references', and usual ones
RAW_KEYS = ("state_dict", "model", "model_state_dict", "net", "module")
EMA_KEYS = ("ema_state_dict", "state_dict_ema", "model_ema", "ema")
# what DistributedDataParallel, Lightning and torch.compile put before every name
PREFIXES = ("module.", "model.", "_orig_mod.", "network.", "net.")
AVERAGED = "n_averaged"  # torch's AveragedModel, and torchvision's below it, count beside the weights
NUM_NAMED = 3  # differences that a message names


class Inert:
    """Stands in a file's place for an object that is not wanted: it takes what is given and does nothing with it."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


# What timm, torchvision's references and others put beside the weights: arguments, paths, and numpy's numbers and
# arrays. An Inert is built in their place, and of any other class nothing; torch's unpickler stops there.
SET_ASIDE = (
    "argparse.Namespace",
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(f"pathlib._local.{name}" for name in ("Path", "PosixPath", "WindowsPath")),  # Python 3.13
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray"),
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float16", "Float32", "Float64", "Int32", "Int64", "Bool")),
)


class Weights(NamedTuple):
    """A state dict as a file has it."""

    state: dict[str, Tensor]
    kind: str  # raw | ema: as trained, or their exponential moving average
    facts: dict[str, Any]  # what our checkpoints say of themselves (training/classifier.py); empty for other files


def load_weights(path: Path, *, ema: bool | None = None) -> Weights:
    """The weights in a .safetensors file, a plain state dict (.pth) or a checkpoint, on the CPU.

    ema: whether the moving average is wanted; None takes it where there is one. Raises UserError where the file is
    missing, broken, holds objects other than tensors, plain values and those of SET_ASIDE (none is ever built), or not
    the weights asked, and for a checkpoint of ours that is damaged or of another run than the folder that it lies in.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of weights")
    content: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    content = content if isinstance(content, Mapping) else {}
    facts = content.get("tencrop", {})
    if facts:  # ours: both stand in one state dict, beside counters
        raw, average = (with_prefix(content["state_dict"], prefix) for prefix in ("model.", "ema."))
    else:
        raw = content if _is_state(content) else _first_state(content, RAW_KEYS)
        average = _first_state(content, EMA_KEYS)
    if ema and average is None:
        raise UserError(f"{path}: holds no EMA weights; leave out ema=true")
    if average is not None and ema is not False:
        return Weights(average, "ema", facts)
    if raw is None:
        keys = ", ".join(str(key) for key in content) or "nothing"
        raise UserError(f"{path}: no state dict was found in it (but {keys}); save model.state_dict()")
    return Weights(raw, "raw", facts)


def apply_weights(network: nn.Module, state: Mapping[str, Tensor], *, source: str, name: str) -> None:
    """Copy `state` into `network`; every tensor must find its place, and every place its tensor.

    Prefixes of wrappers are dropped, and torchvision's names for the same network understood. Raises UserError naming
    the first differences: `source` is the file and `name` the network in that message.
    """
    own = network.state_dict()
    state = in_own_names(_without_prefixes(state, own), own, name=name)
    check_weights(state, own, source=source, name=name)
    network.load_state_dict(state, strict=False)


def check_weights(state: Mapping[str, Tensor], own: Mapping[str, Tensor], *, source: str, name: str) -> None:
    """Raises UserError naming the first names and shapes in which `state`, of the file, is not `own`, the network's."""
    # BatchNorm counts its batches since torch 0.4.1; nothing is computed from the count
    lacking = [key for key in own if key not in state and not key.endswith(".num_batches_tracked")]
    unknown = [key for key in state if key not in own]
    reshaped = [
        f"{key} is {list(state[key].shape)} and not {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    differences = [
        f"{verb}{', '.join(keys[:NUM_NAMED])}" + (f" and {len(keys) - NUM_NAMED} more" if len(keys) > NUM_NAMED else "")
        for verb, keys in (("it lacks ", lacking), ("has, unknown there, ", unknown), ("", reshaped))
        if keys
    ]
    if differences:
        raise UserError(
            f"{source}: its weights are not those of {name}: {'; '.join(differences)};"
            " name the model (and data with as many classes) that they were trained as"
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: is a broken .safetensors file ({error})") from error


def _read_torch(path: Path) -> Any:
    inert: list[Any] = [(Inert, name) for name in SET_ASIDE]
    with warnings.catch_warnings(action="ignore", category=UserWarning), torch.serialization.safe_globals(inert):
        try:
            return load_checked(path)
        except UserError:
            raise
        except PermissionError as error:
            raise UserError(f"{path}: cannot be read ({os.strerror(error.errno or 0)})") from error
        except Exception as error:  # a broken file raises whatever its bytes lead torch's unpickler to
            found = re.search(r"GLOBAL (\S+)", str(error))
            raise UserError(
                f"{path}: cannot be read as weights: "
                + (
                    f"it holds {found[1]}, which could run code when read"
                    if found
                    else "it is broken, or another kind of file"
                )
                + "; save the tensors alone, best as .safetensors"
            ) from error


def _first_state(content: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Tensor] | None:
    found = [content[key] for key in keys if key in content]
    return next((state for state in found if _is_state(state)), None)


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping) and bool(content) and all(isinstance(value, Tensor) for value in content.values())
    )


def _without_prefixes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = {key: value for key, value in state.items() if key != AVERAGED or key in own}
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) and key not in own for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
