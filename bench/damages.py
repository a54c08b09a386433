"""Damages the content of a file, for bench/damaged_files.py: as disks, copies and strangers do."""

from __future__ import annotations

import io
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tencrop.models.checkpoint_files import add_digest

# One copy after the other; most are flips, the smallest damage.
DAMAGES = ("flip", "cut", "swap", "flip", "overwrite", "foreign", "flip", "code")
MAX_BLOCK = 4096


def damaged(
    content: bytes, foreign: list[bytes], marker: Path, count: int, rng: random.Random
) -> Iterator[tuple[str, bytes]]:
    """`count` names of damages with the damaged content, each of which differs from `content`.

    foreign: contents of other kinds of files. marker: a path that does not exist; a file with code makes a folder there
    when a reader runs the code.
    """
    code = files_with_code(content, marker)
    for number in range(count):
        damage = DAMAGES[number % len(DAMAGES)]
        match damage:
            case "flip":
                changed = flip(content, rng)
            case "cut":
                changed = content[: rng.randrange(len(content)) if number > len(DAMAGES) else 0]
            case "swap":
                changed = swap_blocks(content, rng)
            case "overwrite":
                changed = overwrite(content, rng)
            case "foreign":
                changed = rng.choice(foreign)
            case _:
                changed = code[number // len(DAMAGES) % len(code)]
        assert changed != content
        yield damage, changed


def flip(content: bytes, rng: random.Random) -> bytes:
    """Flip one bit."""
    bit, changed = rng.randrange(8 * len(content)), bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def swap_blocks(content: bytes, rng: random.Random) -> bytes:
    """Exchange two blocks of equal size that do not overlap, as a disk does that writes to the wrong place."""
    size = rng.randrange(1, min(MAX_BLOCK, len(content) // 2) + 1)
    while True:
        first = rng.randrange(len(content) - 2 * size + 1)
        second = rng.randrange(first + size, len(content) - size + 1)
        blocks = content[first : first + size], content[second : second + size]
        if blocks[0] != blocks[1]:
            middle = content[first + size : second]
            return content[:first] + blocks[1] + middle + blocks[0] + content[second + size :]
        size = max(1, size // 2)


def overwrite(content: bytes, rng: random.Random) -> bytes:
    """Replace a block by random bytes."""
    size = rng.randrange(1, min(MAX_BLOCK, len(content)) + 1)
    first = rng.randrange(len(content) - size + 1)
    # The first byte differs for certain.
    block = bytes([content[first] ^ rng.randrange(1, 256)]) + rng.randbytes(size - 1)
    return content[:first] + block + content[first + size :]


class _MakesFolder:
    """An object whose unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def files_with_code(content: bytes, marker: Path) -> list[bytes]:
    """Files that make `marker` if they are read carelessly: pickles, also in zip and NumPy files, and YAML."""
    found, code = [pickle.dumps(_MakesFolder(marker), protocol=2)], _MakesFolder(marker)
    for saved in (code, {"state_dict": {"weight": torch.zeros(1)}, "tencrop": code}):
        archive = io.BytesIO()
        torch.save(saved, archive)
        found.append(archive.getvalue())
        add_digest(archive)  # anybody can compute it
        found.append(archive.getvalue())
    array = io.BytesIO()
    np.save(array, np.array([code], dtype=object), allow_pickle=True)
    tag = f"? !!python/object/apply:os.mkdir ['{marker}']\n: 1\n".encode()
    target = f"\nmodel:\n  _target_: os.mkdir\n  path: {marker}\n".encode()
    return [*found, array.getvalue(), tag, content + b"\n" + tag, content + target]
