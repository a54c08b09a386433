"""Creates archives in the format of ILSVRC2012 from any tree of class folders (prepare.py simulate=true).

With them the whole path from archives to training can be tested on a few real images. The traps of the original are
kept: ILSVRC2012_ID is not the sorted order, the validation images are not ordered by class, and the synsets have an
inner node. A file SIMULATED in the devkit distinguishes these archives from the original.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tencrop.cli.command_line import command_prefix, typed_word
from tencrop.config import Data, UserError
from tencrop.config.writable import check_writable
from tencrop.console import plain_console
from tencrop.data.sources.devkit import ARCHIVE as DEVKIT_ARCHIVE
from tencrop.data.sources.devkit import FOLDER, GROUND_TRUTH, META, SIMULATED
from tencrop.data.sources.folder import FolderSource
from tencrop.data.sources.ilsvrc import ARCHIVES, MD5_LIST
from tencrop.data.sources.source import Source
from tencrop.files import atomic_file, atomic_write
from tencrop.progress import counting_images

# Fields of `synsets` in meta.mat, in the original's order
FIELDS = (
    "ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images",
)  # fmt: skip


def simulate(data: Data, *, progress: bool = True) -> Path:
    """Write the three archives and their MD5 list into `data.root`; return it.

    `data.source` is a tree of class folders, its splits named by `data.splits`. The same tree gives the same bytes.
    Raises UserError if it is not such a tree, or if there are archives already.
    """
    console, root = plain_console(quiet=not progress, soft_wrap=True), Path(data.root)
    check_writable(root / MD5_LIST, remedy="make room, or choose another folder with data.root=DIR")
    source = FolderSource(data)
    names = (ARCHIVES["train"], ARCHIVES["val"], DEVKIT_ARCHIVE)
    for name in names:
        if (root / name).exists():
            raise UserError(f"data.root={root}: already has {name}; choose an empty folder")
    root.mkdir(parents=True, exist_ok=True)
    ids = simulated_ids(source.classes)
    with counting_images(console, "train", len(source.files["train"])) as advance:
        _write_train(root / ARCHIVES["train"], source, advance)
    with counting_images(console, "val", len(source.files["val"])) as advance:
        ground_truth = _write_val(root / ARCHIVES["val"], source, ids, advance)
    _write_devkit(root / DEVKIT_ARCHIVE, source, ids, ground_truth)
    sums = {name: _md5(root / name) for name in names}
    atomic_write(root / MD5_LIST, "".join(f"{md5}  {name}\n" for name, md5 in sums.items()).encode())
    console.print(
        f"{root}: {', '.join(names)}; {command_prefix('prepare')} data=imagenet data.num_classes={len(source.classes)}"
        f" {typed_word('data.source', root)} data.root=PREPARED prepares them"
    )
    return root


def simulated_ids(classes: list[str]) -> dict[str, int]:
    """ILSVRC2012_ID of every class, counted from 1 and shuffled by a hash of its name."""
    order = sorted(classes, key=lambda name: hashlib.sha256(b"ILSVRC2012_ID " + os.fsencode(name)).digest())
    return {name: number for number, name in enumerate(order, start=1)}


def _write_train(path: Path, source: Source, advance: Callable[[int], None]) -> None:
    # Each inner tar is held in memory. ImageNet's own have 138 MB on average.
    with atomic_file(path) as file, tarfile.open(fileobj=file, mode="w") as archive:
        for label, name in enumerate(source.classes):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive_of_class:
                for image in (image for image in source.files["train"] if image.label == label):
                    # Inner tars are flat, so subfolders become part of the name.
                    image_name = image.name.partition("/")[2].replace("/", "_")
                    _add(archive_of_class, image_name, source.read("train", image))
                    advance(1)
            _add(archive, f"{name}.tar", inner.getvalue())


def _write_val(path: Path, source: Source, ids: dict[str, int], advance: Callable[[int], None]) -> list[int]:
    """Write the validation images in an order independent of their classes; returns their ILSVRC2012_IDs in order."""
    # Ordered by a hash of the name: mixes the classes, as in the original, and is the same every time.
    key = [hashlib.sha256(os.fsencode(file.name)).digest() for file in source.files["val"]]
    order = sorted(range(len(key)), key=key.__getitem__)
    with atomic_file(path) as file, tarfile.open(fileobj=file, mode="w") as archive:
        for number, rank in enumerate(order, start=1):
            image = source.files["val"][rank]
            _add(archive, f"ILSVRC2012_val_{number:08d}.JPEG", source.read("val", image))
            advance(1)
    return [ids[source.classes[source.files["val"][rank].label]] for rank in order]


def _write_devkit(path: Path, source: Source, ids: dict[str, int], ground_truth: list[int]) -> None:
    num_images = np.bincount([file.label for file in source.files["train"]], minlength=len(source.classes))
    files = {
        SIMULATED: b"Made by tencrop's prepare.py simulate=true; not the development kit of ILSVRC2012.\n",
        META: _meta(source.classes, ids, num_images.tolist()),
        GROUND_TRUTH: "".join(f"{number}\n" for number in ground_truth).encode(),
    }
    with (
        atomic_file(path) as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as compressed,  # no name, no time: same bytes
        tarfile.open(fileobj=compressed, mode="w") as archive,
    ):
        for name, content in files.items():
            _add(archive, f"{FOLDER}/{name}", content)


def _meta(classes: list[str], ids: dict[str, int], num_images: list[int]) -> bytes:
    """Content of meta.mat: `synsets` has the leaves by ILSVRC2012_ID, then one inner node."""
    from scipy.io import savemat

    synsets = np.zeros((len(classes) + 1, 1), [(name, object) for name in FIELDS])
    for wnid, number in ids.items():
        count = num_images[classes.index(wnid)]
        synsets[number - 1, 0] = (float(number), wnid, wnid, "", 0.0, np.zeros((1, 0)), 0.0, float(count))
    children = np.arange(1.0, len(classes) + 1)[None]
    synsets[-1, 0] = (len(classes) + 1.0, "n00000000", "entity", "", float(len(classes)), children, 1.0, 0.0)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    content = buffer.getvalue()
    text = b"MATLAB 5.0 MAT-file"  # the header without the time that scipy appends
    return text.ljust(116) + content[116:]


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)  # without owner and time, so that the same tree gives the same bytes
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
