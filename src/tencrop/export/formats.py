"""Writes a network in one of the formats of export.py, and compares the file with the network."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from tencrop.config import UserError
from tencrop.models.checkpoint_files import weights_sha256
from tencrop.models.weights import MEAN_IMAGE_TENSOR, PREPROCESSING_KEY, load_weights

TOLERANCE = 1e-4  # of the logits, absolute and relative
Program = Callable[[Tensor], Tensor]


def write_network(network: nn.Module, path: Path, *, format: str, preprocessing: dict[str, Any], name: str) -> None:
    """Write `network` (in eval mode, on the CPU) to `path` and read it back.

    format: safetensors | torch_export | onnx. The programs take float32 [N, 3, size, size], N of any size, and return
    logits [N, num_classes]. Raises UserError if torch cannot export the network, or the file gives other weights or
    outputs; `name` is the network's, for the message.
    """
    if format == "safetensors":
        _write_safetensors(network, path, preprocessing)
        return
    size, generator = preprocessing["size"], torch.Generator().manual_seed(0)
    # The comparison takes another batch size than the example: a program that has baked in N = 2 fails here, not at the
    # user's.
    example, others = (torch.randn(num, 3, size, size, generator=generator) for num in (2, 3))
    write = _write_torch_export if format == "torch_export" else _write_onnx
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # the exporters' own, about torch's internals
        try:
            program = write(network, path, example)
            found, expected = program(others), network(others)
        except Exception as error:  # the exporters raise exceptions of many types for what they cannot trace
            raise UserError(f"format={format}: torch cannot export {name} ({_first_line(error)})") from error
    difference = (found - expected).abs().max().item()
    if not torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
        raise UserError(
            f"format={format}: the exported {name} differs by {difference:.1e} in its logits; nothing is kept"
        )


def write_mean_image(mean_image: Tensor, path: Path) -> None:
    """Write the image that is subtracted from the pixels, float32 [S, S, 3], as a .safetensors file of its own.

    In model.safetensors, timm would refuse it as an unexpected weight. It cannot become the bias of the first
    convolution either: that is one number for a channel, and the mean image gives another one at every position.
    """
    path.write_bytes(save({MEAN_IMAGE_TENSOR: mean_image.contiguous()}))


def _write_safetensors(network: nn.Module, path: Path, preprocessing: dict[str, Any]) -> None:
    # Copies, because safetensors refuses tensors that share memory. One metadata entry: several come in random order.
    state = {key: tensor.detach().clone().contiguous() for key, tensor in network.state_dict().items()}
    # not save_file, which makes the file readable for its owner only
    sha256 = weights_sha256(state)
    facts = {**preprocessing, "weights_sha256": sha256}
    path.write_bytes(save(state, {PREPROCESSING_KEY: json.dumps(facts, sort_keys=True)}))
    written = load_weights(path)
    assert weights_sha256(written.state) == sha256 == weights_sha256(network.state_dict())
    assert written.preprocessing == preprocessing


def _write_torch_export(network: nn.Module, path: Path, example: Tensor) -> Program:
    # The example must have two images or more: torch.export takes a batch of one for a constant, and refuses `batch`.
    batch = torch.export.Dim("batch", min=1)
    torch.export.save(torch.export.export(network, (example,), dynamic_shapes=({0: batch},)), path)
    return torch.export.load(path).module()


def _write_onnx(network: nn.Module, path: Path, example: Tensor) -> Program:
    import onnxruntime  # optional, and takes 0.5 s

    torch.onnx.export(
        network,
        (example,),
        path,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        input_names=["images"],
        output_names=["logits"],
        external_data=False,  # weights in the same file
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
