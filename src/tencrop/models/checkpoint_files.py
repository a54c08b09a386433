"""The file of a checkpoint: SHA-256 over all its bytes, compared on every read, and the run that it belongs to.

Written by training/checkpoints.py, read there and by weights.py. A file of torch.save is a zip archive; the digest is
the archive's comment, its last bytes. Zip readers, torch's too, look for the end of the archive from the end of the
file and pass over a comment, so that plain torch.load(path, weights_only=True) reads the file as any other.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from tencrop.config import UserError
from tencrop.config.documents import read_json

FORMAT = 2  # of our checkpoints ("tencrop" in them); files of format 1 have no digest
END_BYTES, END_SIGNATURE = 22, b"PK\x05\x06"  # end of central directory record of a zip archive without a comment
DIGEST_BYTES = 64  # hexadecimal
COMMENT = b"tencrop sha256 "
BLOCK_BYTES = 1 << 20
MEND = "train.py goes on from previous.ckpt beside it where there is one; else name another file, or delete it"


_TEXT = (str, None)
RUN_SHAPE = {  # what a checkpoint is compared with; records/run_folder.py has all of it
    "seeds": {"seed": int},
    "result": {"status": str, "weights_sha256": _TEXT, "ema_sha256?": _TEXT},
    "run_id?": _TEXT,
    "model?": _TEXT,
    "total_steps?": (int, None),
}


class RefusedCheckpoint(UserError):
    """A checkpoint that is not what was written, or that is not of its run; `reason` is the sentence without mend."""

    def __init__(self, path: str | Path, reason: str, mend: str = MEND):
        super().__init__(f"{path}: {reason}; {mend}")
        self.reason = reason


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex over (name, dtype, shape, bytes) of the tensors of a state dict, sorted by name.

    Names are the network's own ("conv1.weight"), so that a checkpoint and a plain file of its weights agree.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def add_digest(archive: io.BytesIO) -> None:
    """Append the digest of all bytes before it to what torch.save wrote."""
    size = archive.seek(0, os.SEEK_END)
    archive.seek(size - END_BYTES)
    assert archive.read(4) == END_SIGNATURE, "torch.save wrote no zip archive, or one with a comment"
    archive.seek(size - 2)
    archive.write(struct.pack("<H", len(COMMENT) + DIGEST_BYTES) + COMMENT)
    digest = hashlib.sha256(archive.getbuffer()).hexdigest()
    archive.write(digest.encode())


def load_checked(path: str | Path) -> Any:
    """What torch.load reads (tensors and plain values, on the CPU), after its digest has been compared, if it has one.

    Raises RefusedCheckpoint for a damaged file and for a checkpoint of ours that lies in another run's folder, OSError,
    and whatever torch raises for other bytes.

    Hashing costs 0.14 s for 200 MB (one core with SHA instructions) and no memory: the file is read block by block,
    and torch then reads the same open file, from the page cache. Holding its bytes would double the memory of a resume.
    """
    with open(path, "rb") as file:
        has_digest = _compare_digest(path, file)
        file.seek(0)
        content = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(content, Mapping) and "tencrop" in content:
        if not has_digest:
            _compare_weights(path, content)
        _compare_with_run(Path(path), content["tencrop"])
    return content


def run_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a run folder, empty where there is none; UserError where it is broken."""
    path = folder / "manifest.json"
    if not path.exists():
        return {}
    mend = "bring it back from a copy, or delete the folder and train again"
    return read_json(path, RUN_SHAPE, what="the manifest of a run", mend=mend)


def with_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor] | None:
    """The tensors under a prefix of a state dict, without it; None where there are none."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)} or None


def _compare_digest(path: str | Path, file: BinaryIO) -> bool:
    """Whether the file has a digest; RefusedCheckpoint where it is not that of its bytes."""
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


def _compare_weights(path: str | Path, content: Mapping[str, Any]) -> None:
    """A file without a digest, as earlier code wrote it: its weights at least have their hashes in it."""
    facts, state = content["tencrop"], content.get("state_dict")
    if not isinstance(facts, Mapping) or not isinstance(state, Mapping) or facts.get("format", 1) != 1:
        raise RefusedCheckpoint(path, "is damaged: its digest is missing, or a part of it")
    for prefix, key in (("model.", "weights_sha256"), ("ema.", "ema_sha256")):
        weights = with_prefix(state, prefix)
        if facts.get(key) != (weights and weights_sha256(weights)):
            raise RefusedCheckpoint(path, f"is damaged: its weights are not those that were written ({key})")


def _compare_with_run(path: Path, facts: Mapping[str, Any]) -> None:
    """A checkpoint in RUN/checkpoints/ must be of that run, as far as the run's manifest says (older ones say less)."""
    folder = path.absolute().parent
    manifest = run_manifest(folder.parent) if folder.name == "checkpoints" else {}
    if not manifest:
        return
    expected = {"seed": manifest["seeds"]["seed"], "run_id": manifest.get("run_id")}
    expected |= {key: manifest[key] for key in ("model", "total_steps") if manifest.get(key) is not None}
    ended = manifest["result"]
    if ended["status"] == "complete" and facts.get("is_complete"):
        expected |= {key: ended.get(key) for key in ("weights_sha256", "ema_sha256")}
    for key, value in expected.items():
        if facts.get(key) != value:
            reason = f"is of another run: its {key} is {facts.get(key)} and not {value}, as the folder's manifest says"
            raise RefusedCheckpoint(path, reason)
