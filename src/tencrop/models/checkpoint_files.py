"""Checkpoint files with a SHA-256 digest that every read verifies, and the check that one belongs to its run.

training/checkpoints.py writes the files; it and weights.py read them. torch.save writes a zip archive, and the digest
is its comment, at the end of the file. Zip readers, torch's included, search for the end record backward and skip a
comment, so plain torch.load(path, weights_only=True) reads the file as well.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from tencrop.config import UserError
from tencrop.config.documents import read_json

FORMAT = 2  # of our checkpoints (those with a "tencrop" entry); files of format 1 have no digest
END_BYTES, END_SIGNATURE = 22, b"PK\x05\x06"  # zip's end of central directory record, if there is no comment
DIGEST_BYTES = 64  # hexadecimal
COMMENT = b"tencrop sha256 "
BLOCK_BYTES = 1 << 20  # read and hashed at a time, so that memory does not grow with the checkpoint
REMEDY = (
    "train.py continues from previous.ckpt in the same folder if there is one; else name another file, or delete it"
)


_TEXT = (str, None)
# The part of a run's manifest that a checkpoint is compared with; records/run_folder.py has the whole. A "?" marks keys
# that older manifests lack.
RUN_SHAPE = {
    "seeds": {"seed": int},
    "result": {"status": str, "weights_sha256": _TEXT, "ema_sha256?": _TEXT},
    "run_id?": _TEXT,
    "model?": _TEXT,
    "total_steps?": (int, None),
    "data?": {"classes?": [str]},  # compared with those of a student (training/distillation.py)
}


class RefusedCheckpoint(UserError):
    """A checkpoint is damaged or belongs to another run; `reason` is the message without path and remedy."""

    def __init__(self, path: str | Path, reason: str, remedy: str = REMEDY):
        super().__init__(f"{path}: {reason}; {remedy}")
        self.reason = reason


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Hexadecimal SHA-256 over name, dtype, shape and bytes of a state dict's tensors, sorted by name.

    Pass the network's own names ("conv1.weight"), so that a checkpoint and a plain file of its weights agree.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # numpy knows no bfloat16; the view as bytes works for every dtype and copies nothing
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def add_digest(archive: io.BytesIO) -> None:
    """Append a SHA-256 of all bytes before it, as a zip comment, to an archive that torch.save wrote."""
    size = archive.seek(0, os.SEEK_END)
    archive.seek(size - END_BYTES)
    assert archive.read(4) == END_SIGNATURE, "torch.save wrote no zip archive, or one with a comment"
    archive.seek(size - 2)  # the comment's length, 0 so far; it must be set first, since the digest covers it
    archive.write(struct.pack("<H", len(COMMENT) + DIGEST_BYTES) + COMMENT)
    digest = hashlib.sha256(archive.getbuffer()).hexdigest()
    archive.write(digest.encode())


def load_checked(path: str | Path) -> Any:
    """Verify the digest, or else the archive's checksums, and return torch.load's tensors and plain values on the CPU.

    Raises RefusedCheckpoint for a damaged file and for a checkpoint of ours in another run's folder, OSError, and
    whatever torch raises on bytes that it cannot read.

    Hashing costs 0.14 s for 200 MB (one core with SHA instructions) and no memory: the file is read block by block.
    torch then reads the same open file from the page cache. Keeping the bytes would double the memory of a resume.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # opening a named pipe would block forever
        raise RefusedCheckpoint(path, "is not a file")
    # One open file for both passes: a checkpoint replaced in between cannot be loaded without having been hashed.
    with open(path, "rb") as file:
        has_digest = _compare_digest(path, file)
        if not has_digest:
            _compare_crc(path, file)
        file.seek(0)
        content = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(content, Mapping) and "tencrop" in content:
        if not has_digest:
            _compare_weights(path, content)
        _compare_with_run(Path(path), content["tencrop"])
    return content


def run_manifest(folder: Path) -> dict[str, Any]:
    """Read manifest.json of a run folder; empty if there is none, UserError if it is broken."""
    path = folder / "manifest.json"
    if not path.exists():
        return {}
    remedy = "restore it from a copy, or delete the folder and train again"
    return read_json(path, RUN_SHAPE, what="the manifest of a run", remedy=remedy)


def with_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor] | None:
    """Select the tensors whose names have the prefix and strip it; None if there are none."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)} or None


def _compare_digest(path: str | Path, file: BinaryIO) -> bool:
    """Return whether the file has a digest; raise RefusedCheckpoint if it does not match the bytes."""
    num_hashed = max(0, file.seek(0, os.SEEK_END) - DIGEST_BYTES)
    file.seek(max(0, num_hashed - len(COMMENT)))
    if file.read(len(COMMENT)) != COMMENT:
        return False
    written, digest = file.read(), hashlib.sha256()
    file.seek(0)
    while num_hashed:
        block = file.read(min(BLOCK_BYTES, num_hashed))
        digest.update(block)
        num_hashed -= len(block)
    if digest.hexdigest().encode() != written:
        raise RefusedCheckpoint(path, "is damaged: its bytes are not those that were written (SHA-256)")
    return True


def _compare_crc(path: str | Path, file: BinaryIO) -> None:
    """Raise RefusedCheckpoint if a zip archive without our digest, such as a publisher's weights, is damaged.

    torch.save writes a CRC-32 of every tensor, but torch.load reads tensors without comparing it.
    """
    if not zipfile.is_zipfile(file):  # torch before 1.6 wrote plain pickles, which have no checksum
        return
    with zipfile.ZipFile(file) as archive:
        if (name := archive.testzip()) is not None:
            remedy = (
                "copy or download it again; if it was saved without checksums (set_crc32_options), save it with them"
            )
            raise RefusedCheckpoint(path, f"is damaged: {name} in it is not what was written (CRC-32)", remedy)


def _compare_weights(path: str | Path, content: Mapping[str, Any]) -> None:
    """Check a file of format 1, which has no digest, by the hashes of its weights that it contains."""
    metadata, state = content["tencrop"], content.get("state_dict")
    if not isinstance(metadata, Mapping) or not isinstance(state, Mapping) or metadata.get("format", 1) != 1:
        # format 2 always ends in a digest, so the end of the file was cut off
        raise RefusedCheckpoint(path, "is damaged: its digest is missing or incomplete")
    for prefix, key in (("model.", "weights_sha256"), ("ema.", "ema_sha256")):
        weights = with_prefix(state, prefix)
        if metadata.get(key) != (weights and weights_sha256(weights)):
            raise RefusedCheckpoint(path, f"is damaged: its weights are not those that were written ({key})")


def _compare_with_run(path: Path, metadata: Mapping[str, Any]) -> None:
    """Raise RefusedCheckpoint if a file in RUN/checkpoints/ differs from the run's manifest (older ones record less).

    Copying a checkpoint into another run's folder would otherwise continue, or report, the wrong run without notice.
    """
    folder = path.absolute().parent
    manifest = run_manifest(folder.parent) if folder.name == "checkpoints" else {}
    if not manifest:
        return
    expected = {"seed": manifest["seeds"]["seed"], "run_id": manifest.get("run_id")}
    expected |= {key: manifest[key] for key in ("model", "total_steps") if manifest.get(key) is not None}
    ended = manifest["result"]
    # The manifest has the hashes of the final weights only. Earlier checkpoints of the run rightly differ from them.
    if ended["status"] == "complete" and metadata.get("is_complete"):
        expected |= {key: ended.get(key) for key in ("weights_sha256", "ema_sha256")}
    for key, value in expected.items():
        if metadata.get(key) != value:
            reason = f"is of another run: its {key} is {metadata.get(key)} and not {value} as in the folder's manifest"
            raise RefusedCheckpoint(path, reason)
