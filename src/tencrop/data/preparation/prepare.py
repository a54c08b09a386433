"""From a source to a prepared folder: two .beton files, tables of files, statistics, manifest. Called by prepare.py.

The manifest comes last: without one a folder is not prepared. An interrupted preparation is simply run again, and goes
on from what it had brought to disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.features
from rich.console import Console

import tencrop
from tencrop.config import Data, StoreOptions, UserError, num_threads
from tencrop.config.writable import check_writable
from tencrop.console import plain_console
from tencrop.data.preparation.adopt import NOT_KNOWN, BetonSource, adopt_split, check_root, introduction
from tencrop.data.preparation.estimate import announce
from tencrop.data.preparation.parts import any_part, remove_parts
from tencrop.data.preparation.statistics import ColorSums, sampled_every
from tencrop.data.preparation.writer import write_npy, write_split
from tencrop.data.sources.archives import check_md5
from tencrop.data.sources.cifar10 import Cifar10Source
from tencrop.data.sources.digits import DigitsSource, permutation
from tencrop.data.sources.folder import FolderSource, check_num_classes, source_folder
from tencrop.data.sources.ilsvrc import IlsvrcSource
from tencrop.data.sources.source import TREE, Source
from tencrop.data.sources.tiny_imagenet import TinyImagenetSource
from tencrop.data.store.encode import PLAIN_KINDS
from tencrop.data.store.manifest import FORMAT, SPLITS, open_split, read_manifest, write_manifest
from tencrop.files import file_sha256, partial_name
from tencrop.progress import counting_bytes, counting_images

ROOM = "make room, or name another folder with data.root=DIR"


def prepare(data: Data, *, workers: int | str = "auto", progress: bool = True) -> Path:
    """Write the prepared folder `data.root` and return it; where it is prepared already, only say so.

    `workers` threads decode (auto: the cores granted); `progress=False` prints nothing. Raises UserError for a
    source that cannot be used, an undecodable file (unless `data.undecodable` is skip), too little space, or a
    folder prepared from other files or with other options; OSError where the disk fills up all the same.
    """
    root = Path(data.root)
    console = plain_console(quiet=not progress, soft_wrap=True)
    if _is_prepared(root, data, console):
        return root
    if root.exists() and not root.is_dir():
        raise UserError(f"data.root={root}: is a file; name a folder for the prepared data")
    check_writable(root / "manifest.json", mend=ROOM)  # archives are read through first, which takes minutes
    with console.status("looking through the files"):
        source = open_source(data)
    _check_place(root, source)
    root.mkdir(parents=True, exist_ok=True)
    with _only_writer(root):
        if not _is_prepared(root, data, console):  # by another process, meanwhile
            with _cleaned_up_after_failure(root):
                splits = _write(root, source, data, num_threads=num_threads(workers), console=console)
            _print_summary(root, splits, console)
    return root


def _write(root: Path, source: Source, data: Data, *, num_threads: int, console: Console) -> dict[str, Any]:
    """Write all files of the prepared folder, the manifest last; return what it says of the splits."""
    options = {split: store_options(data, split) for split in SPLITS}
    if isinstance(source, BetonSource):
        console.print(introduction(root, source))
    else:
        announce(source, options, name=data.name, root=root, num_threads=num_threads, console=console)
    if data.check_md5:
        _check_archives(source, console)
    splits, sums, every = {}, {}, sampled_every(len(source.files["train"]))
    for split in SPLITS:
        with counting_images(console, split, len(source.files[split])) as advance:
            settings: dict[str, Any] = {
                "num_threads": num_threads,
                "every": every if split == "train" else None,
                "advance": advance,
            }
            if isinstance(source, BetonSource):
                splits[split], sums[split] = adopt_split(root, split, source, **settings)
            else:
                undecodable = data.undecodable
                splits[split], sums[split] = write_split(
                    root, split, source, options[split], undecodable=undecodable, **settings
                )
    sums["train"].every = every
    write_npy(root / "mean_image.npy", sums["train"].mean_image())
    write_manifest(root, _manifest(data, source, splits, sums["train"]))
    remove_parts(root)
    return splits


def open_source(data: Data) -> Source:
    """The source that `data.name` and `data.source` mean; UserError where its files are not as they must be."""
    if data.name == "digits":
        return DigitsSource()
    if data.name == "imagefolder":
        return FolderSource(data)
    if data.name == "imagenet":
        return IlsvrcSource(data)
    if data.name == "beton":
        return BetonSource(data)
    path = source_folder(data)
    source = (Cifar10Source if data.name == "cifar10" else TinyImagenetSource)(path, subset=data.subset)
    check_num_classes(data, source.classes)
    return source


def store_options(data: Data, split: str) -> StoreOptions:
    """The training split is stored as chosen; the evaluation split keeps its original bytes [11]; digits have none."""
    if split == "train" or data.name == "digits":
        return data.store
    return StoreOptions(mode="jpeg", short_side=None, max_side=None, quality=data.store.quality)


def _manifest(data: Data, source: Source, splits: dict[str, Any], sums: ColorSums) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": data.name,
        "options": _options(data),
        "classes": source.classes,
        "splits": splits,
        "statistics": sums.statistics(),
        "mean_image": "mean_image.npy",
        "mean_image_sha256": file_sha256(Path(data.root) / "mean_image.npy"),
        "source": dataclasses.asdict(source.place),
        "left_out": {split: dict(sorted(sorts.items())) for split, sorts in source.left_out.items()},
        **({"permutation": permutation()} if data.name == "digits" else {}),
        **({"not_known": NOT_KNOWN} if data.name == "beton" else {}),
        "created": {
            "tencrop": tencrop.__version__,
            "pillow": PIL.__version__,
            "libjpeg_turbo": PIL.features.version("libjpeg_turbo"),
        },
    }


def _options(data: Data) -> dict[str, Any]:
    """What changes the prepared files, by its key."""
    options: dict[str, Any] = {f"store.{key}": value for key, value in dataclasses.asdict(data.store).items()}
    if data.name != "digits":
        options |= {f"splits.{key}": value for key, value in dataclasses.asdict(data.splits).items()}
    return {**options, "undecodable": data.undecodable}


def _is_prepared(root: Path, data: Data, console: Console) -> bool:
    """Whether the folder holds these data, prepared like this; says so. UserError where it holds others."""
    if not (root / "manifest.json").exists():
        return False
    _check_prepared(root, data)
    console.print(f"{root}: already prepared")
    return True


def _check_prepared(root: Path, data: Data) -> None:
    """UserError unless the folder was prepared from these files with these options, and is whole."""
    manifest = read_manifest(root, data.name)
    mend = "name another data.root, or delete this one to prepare it anew"
    if manifest["name"] != data.name:
        raise UserError(f"data.root={root}: holds prepared {manifest['name']}, not {data.name}; {mend}")
    for key, value in _options(data).items():
        if (found := manifest["options"].get(key)) != value and not _is_same_folder(key, data, manifest["source"]):
            raise UserError(f"data.{key}={value}: {root} was prepared with data.{key}={found}; {mend}")
    splits = {split: open_split(root, split, data=data.name) for split in SPLITS}
    if data.name == "digits" or data.source is None or not Path(data.source).is_dir():
        return
    for name, num_bytes in manifest["source"]["archives"].items():  # instead of reading through them again
        archive = Path(data.source) / name
        if archive.exists() and archive.stat().st_size != num_bytes:
            raise UserError(f"{archive}: not the archive that {root} was prepared from; {mend}")
    if set(manifest["source"]["routes"].values()) != {TREE}:
        return
    source = open_source(data)
    for split, opened in splits.items():
        skipped = {entry["name"] for entry in manifest["splits"][split]["skipped"]}
        now = [(os.fsencode(file.name), file.num_bytes) for file in source.files[split] if file.name not in skipped]
        if now != list(zip(opened.files["name"].tolist(), opened.files["bytes"].tolist(), strict=True)):
            raise UserError(f"data.source={data.source}: not the files that {root} was prepared from ({split}); {mend}")


def _is_same_folder(key: str, data: Data, read: dict[str, Any]) -> bool:
    """Whether `data.splits.SPLIT` of another `data.source` names the folder that was read."""
    split = key.removeprefix("splits.")
    if split not in SPLITS or data.source is None or read["path"] is None:
        return False
    folder = dataclasses.asdict(data.splits)[split]
    return (Path(data.source) / folder).resolve() == (Path(read["path"]) / read["splits"][split]).resolve()


def _check_place(root: Path, source: Source) -> None:
    if source.place.path is None:
        return
    if isinstance(source, BetonSource):
        check_root(root, source)
    for split, folder in source.place.splits.items():
        images = (Path(source.place.path) / folder).resolve()
        if root.resolve().is_relative_to(images):
            raise UserError(f"data.root={root}: lies among the images of the {split} split ({images}); name another")


def _check_archives(source: Source, console: Console) -> None:
    """UserError unless every archive has the MD5 that its authors publish (or, simulated, the one beside it)."""
    if not source.place.archives:
        raise UserError("data.check_md5=true: the source holds no archive to check; leave it out")
    assert source.place.path is not None
    published = source.published_md5()
    if missing := source.place.archives.keys() - published:
        raise UserError(f"data.check_md5=true: there is no MD5 of {min(missing)} to compare with; leave it out")
    for name, num_bytes in source.place.archives.items():
        with counting_bytes(console, f"MD5 of {name}", num_bytes) as advance:
            check_md5(Path(source.place.path) / name, published[name], advance)


def _print_summary(root: Path, splits: dict[str, Any], console: Console) -> None:
    for facts in splits.values():
        others = {kind: number for kind, number in facts["kinds"].items() if kind != "jpeg"}
        kinds = "".join(
            f", {number:,} {kind}" + ("" if kind in (*PLAIN_KINDS, "raw") else " converted")
            for kind, number in others.items()
        )
        skipped = f", {len(facts['skipped']):,} skipped" if facts["skipped"] else ""
        console.print(f"{root / facts['beton']}: {facts['num_samples']:,} images{kinds}{skipped}")


@contextlib.contextmanager
def _only_writer(root: Path) -> Iterator[None]:
    """Refuse a second preparation into the same folder; the lock goes with the process, however that ends."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot lock a folder
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"data.root={root}: another preparation is writing there; wait for it") from error
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _cleaned_up_after_failure(root: Path) -> Iterator[None]:
    """Keep only what a next attempt can go on from; nothing where the disk is full, which others need too."""
    try:
        yield
    except BaseException as error:
        if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or not any_part(root):
            remove_parts(root)
            names = ("mean_image.npy", *(f"{split}.{end}" for split in SPLITS for end in ("beton", "files.npy")))
            for path in (root / name for name in names):
                path.unlink(missing_ok=True)
                partial_name(path).unlink(missing_ok=True)
        raise
