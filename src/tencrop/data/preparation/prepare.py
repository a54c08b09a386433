"""Prepares a data set: reads a source and writes .beton files, file tables, statistics and the manifest.

The manifest is written last, so a folder without one is not prepared. After an interruption, run the same command
again: it continues from what was flushed to disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.features
from rich.console import Console

import tencrop
from tencrop.config import Data, StoreOptions, UserError, num_threads
from tencrop.config.writable import check_writable
from tencrop.console import plain_console
from tencrop.data.preparation.adopt import NOT_RECORDED, BetonSource, adopt_split, adoption_notice, check_root
from tencrop.data.preparation.estimate import announce
from tencrop.data.preparation.parts import has_parts, remove_parts
from tencrop.data.preparation.statistics import ColorSums, sampled_every
from tencrop.data.preparation.writer import write_npy, write_split
from tencrop.data.sources.archives import check_md5
from tencrop.data.sources.cifar10 import Cifar10Source
from tencrop.data.sources.digits import DigitsSource, permutation
from tencrop.data.sources.folder import FolderSource, check_num_classes, source_folder
from tencrop.data.sources.ilsvrc import IlsvrcSource
from tencrop.data.sources.imagenet_test_sets import TEST_SETS, ImagenetTestSource
from tencrop.data.sources.mnist import MnistSource
from tencrop.data.sources.source import TREE, Source
from tencrop.data.sources.tiny_imagenet import TinyImagenetSource
from tencrop.data.store.encode import PLAIN_KINDS
from tencrop.data.store.manifest import FORMAT, SPLITS, open_split, read_manifest, write_manifest
from tencrop.files import file_sha256, partial_name
from tencrop.progress import counting_bytes, counting_images

MEAN_IMAGE = "mean_image.npy"
ROOM = "make room, or choose another folder with data.root=DIR"


def prepare(data: Data, *, workers: int | str = "auto", progress: bool = True) -> Path:
    """Write the prepared folder `data.root` and return its path; if it is already prepared, only print that.

    `workers` threads decode (auto: the granted cores); `progress=False` prints nothing. Raises UserError for an
    unusable source, an undecodable file (unless `data.undecodable` is skip), too little space, or a folder that was
    prepared from other files or with other options; OSError if the disk fills up nevertheless.
    """
    root = Path(data.root)
    console = plain_console(quiet=not progress, soft_wrap=True)
    # Before the source is opened: a prepared folder is used on machines that lack the originals.
    if _is_prepared(root, data, console):
        return root
    if root.exists() and not root.is_dir():
        raise UserError(f"data.root={root}: is a file; name a folder for the prepared data")
    _check_unprepared(root, data)
    check_writable(root / "manifest.json", remedy=ROOM)  # now, because indexing the archives takes minutes
    with console.status("looking through the files"):
        source = open_source(data)
    _check_root(root, source)
    root.mkdir(parents=True, exist_ok=True)
    with _only_writer(root):
        if not _is_prepared(root, data, console):  # another process may have finished in the meantime
            with _cleaned_up_after_failure(root):
                splits = _write(root, source, data, num_threads=num_threads(workers), console=console)
            _print_summary(root, splits, console)
    return root


def _write(root: Path, source: Source, data: Data, *, num_threads: int, console: Console) -> dict[str, Any]:
    """Write all files of the prepared folder, the manifest last; returns the manifest's `splits`."""
    options = {split: store_options(data, split) for split in source.files}
    if isinstance(source, BetonSource):
        console.print(adoption_notice(root, source))
    else:
        announce(source, options, name=data.name, root=root, num_threads=num_threads, console=console)
    if data.check_md5:
        _check_archives(source, console)
    splits, sums, every = {}, {}, sampled_every(len(source.files.get("train", ())))
    for split in source.files:
        with counting_images(console, split, len(source.files[split])) as advance:
            settings: dict[str, Any] = {
                "num_threads": num_threads,
                "every": every if split == "train" else None,  # statistics are of the training split only
                "advance": advance,
            }
            if isinstance(source, BetonSource):
                splits[split], sums[split] = adopt_split(root, split, source, **settings)
            else:
                undecodable = data.undecodable
                splits[split], sums[split] = write_split(
                    root, split, source, options[split], undecodable=undecodable, **settings
                )
    # All files are complete and on disk: only now write the manifest, which declares the folder prepared.
    training = sums.get("train")  # a test set has no statistics: its own would be those of the wrong images
    if training is not None:
        training.every = every
        write_npy(root / MEAN_IMAGE, training.mean_image())
    # Parts are removed after that: a kill in between leaves some, which cost disk space and are never read.
    write_manifest(root, _manifest(data, source, splits, training))
    remove_parts(root)
    return splits


def open_source(data: Data) -> Source:
    """Open the source that `data.name` and `data.source` select; UserError if its files are not as required."""
    if data.name == "digits":
        return DigitsSource()
    if data.name == "imagefolder":
        return FolderSource(data)
    if data.name == "imagenet":
        return IlsvrcSource(data)
    if data.name == "beton":
        return BetonSource(data)
    if data.name in TEST_SETS:
        return ImagenetTestSource(data)
    # The remaining three always need data.source and have a fixed layout.
    path = source_folder(data)
    published: dict[str, Callable[..., Source]] = {
        "cifar10": Cifar10Source,
        "mnist": MnistSource,
        "tiny_imagenet": TinyImagenetSource,
    }
    source = published[data.name](path, subset=data.subset)
    check_num_classes(data, source.classes)
    return source


def store_options(data: Data, split: str) -> StoreOptions:
    """Store options of a split: the training split as configured, the evaluation split with its original bytes."""
    # A reduced evaluation split would change published errors: its images would be resampled twice. The digits are
    # generated, so they have no original bytes.
    if split == "train" or data.name == "digits":
        return data.store
    return StoreOptions(mode="jpeg", short_side=None, max_side=None, quality=data.store.quality)


def _manifest(data: Data, source: Source, splits: dict[str, Any], sums: ColorSums | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": data.name,
        "options": _options(data),
        "classes": source.classes,
        "splits": splits,
        **({} if sums is None else _statistics(data, sums)),
        "source": dataclasses.asdict(source.location),
        # Sorted, so that the manifest does not depend on the order in which a file system lists its entries.
        "left_out": {split: dict(sorted(sorts.items())) for split, sorts in source.left_out.items()},
        **({"permutation": permutation()} if data.name == "digits" else {}),
        **({"not_known": NOT_RECORDED} if data.name == "beton" else {}),
        # No date: preparing the same files twice gives the same manifest.
        "created": {
            "tencrop": tencrop.__version__,
            "pillow": PIL.__version__,
            "libjpeg_turbo": PIL.features.version("libjpeg_turbo"),
        },
    }


def _statistics(data: Data, sums: ColorSums) -> dict[str, Any]:
    return {
        "statistics": sums.statistics(),
        "mean_image": MEAN_IMAGE,
        "mean_image_sha256": file_sha256(Path(data.root) / MEAN_IMAGE),
    }


def _options(data: Data) -> dict[str, Any]:
    """The options that affect the prepared files, by key."""
    # check_md5 and num_classes are not among them: they only check the source.
    options: dict[str, Any] = {f"store.{key}": value for key, value in dataclasses.asdict(data.store).items()}
    if data.name != "digits":
        options |= {f"splits.{key}": value for key, value in dataclasses.asdict(data.splits).items()}
    return {**options, "undecodable": data.undecodable}


def _is_prepared(root: Path, data: Data, console: Console) -> bool:
    """Whether the folder holds these data prepared with these options; prints that. UserError if it holds others."""
    if not (root / "manifest.json").exists():
        return False
    _check_prepared(root, data)
    if data.check_md5:
        if data.source is None:
            raise UserError(
                f"data.check_md5=true: {root} is already prepared, and the archives to check are not known; give their"
                " folder with data.source=DIR, or leave it out"
            )
        _check_archives(open_source(data), console)
    console.print(f"{root}: already prepared")
    return True


def _check_prepared(root: Path, data: Data) -> None:
    """Raise UserError unless the folder was prepared from these files with these options, and is complete."""
    manifest = read_manifest(root, data.name)
    remedy = "choose another data.root, or delete this one to prepare it again"
    if manifest["name"] != data.name:
        raise UserError(f"data.root={root}: holds prepared {manifest['name']}, not {data.name}; {remedy}")
    for key, value in _options(data).items():
        if (found := manifest["options"].get(key)) != value and not _is_same_folder(key, data, manifest["source"]):
            raise UserError(f"data.{key}={value}: {root} was prepared with data.{key}={found}; {remedy}")
    # Opening compares sizes and the digests of the tables; no image is read.
    splits = {split: open_split(root, split, data=data.name) for split in manifest["splits"]}
    # Without the source there is nothing to compare with: a prepared folder is used without it.
    if data.name == "digits" or data.source is None or not Path(data.source).is_dir():
        return
    for name, num_bytes in manifest["source"]["archives"].items():  # sizes only: indexing them takes minutes
        archive = Path(data.source) / name
        if archive.exists() and archive.stat().st_size != num_bytes:
            raise UserError(f"{archive}: not the archive that {root} was prepared from; {remedy}")
    # Files in a tree may have changed one by one, so compare names and sizes. Contents are not read: that would take as
    # long as preparing again.
    if set(manifest["source"]["routes"].values()) != {TREE}:
        return
    source = open_source(data)
    for split, opened in splits.items():
        # Files that could not be decoded are in the source, but have no row.
        skipped = {entry["name"] for entry in manifest["splits"][split]["skipped"]}
        now = [(os.fsencode(file.name), file.num_bytes) for file in source.files[split] if file.name not in skipped]
        if now != list(zip(opened.files["name"].tolist(), opened.files["bytes"].tolist(), strict=True)):
            raise UserError(
                f"data.source={data.source}: not the files that {root} was prepared from ({split}); {remedy}"
            )


def _is_same_folder(key: str, data: Data, read: dict[str, Any]) -> bool:
    """Whether another `data.source` with another `data.splits.SPLIT` leads to the folder that was prepared."""
    split = key.removeprefix("splits.")
    if split not in read["splits"] or data.source is None or read["path"] is None:
        return False
    folder = dataclasses.asdict(data.splits)[split]
    # data.source=A data.splits.val=B/val and data.source=A/B data.splits.val=val are one folder.
    return (Path(data.source) / folder).resolve() == (Path(read["path"]) / read["splits"][split]).resolve()


def _check_unprepared(root: Path, data: Data) -> None:
    """Raise UserError if a folder without a manifest holds files with our names that no preparation has left there.

    They would be replaced or, after a failure, deleted; train.beton is also the usual name of a file of ffcv's writer.
    """

    def is_interrupted(*splits: str) -> bool:
        if data.name == "beton":  # has no parts, but links to the user's files
            return any((root / f"{split}.beton").is_symlink() for split in splits)
        return has_parts(root, *splits)

    ends = ("files.npy",) if data.name == "beton" else ("beton", "files.npy")  # adopt.check_root is for its .beton
    owners = {f"{split}.{end}": (split,) for split in SPLITS for end in ends} | {MEAN_IMAGE: SPLITS}
    found = [name for name, splits in owners.items() if os.path.lexists(root / name) and not is_interrupted(*splits)]
    # The manifest last: another process may have written it, and then removed its parts, since `prepare` looked.
    if found and not (root / "manifest.json").exists():
        raise UserError(
            f"data.root={root}: holds {found[0]}, but no manifest, and no interrupted preparation that it could be of;"
            " choose another folder with data.root=DIR, or move the file away"
        )


def _check_root(root: Path, source: Source) -> None:
    """Raise UserError if the prepared folder would be inside a split, whose images the next run would then list."""
    if source.location.path is None:
        return
    if isinstance(source, BetonSource):
        check_root(root, source)
    for split, folder in source.location.splits.items():
        images = (Path(source.location.path) / folder).resolve()
        if root.resolve().is_relative_to(images):
            raise UserError(f"data.root={root}: is inside the {split} split ({images}); choose another folder")


def _check_archives(source: Source, console: Console) -> None:
    """Raise UserError unless every archive has its published MD5 (simulated archives: the one in their list)."""
    if not source.location.archives:
        raise UserError("data.check_md5=true: the source has no archive to check; leave it out")
    assert source.location.path is not None
    published = source.published_md5()
    if missing := source.location.archives.keys() - published:
        raise UserError(f"data.check_md5=true: there is no MD5 of {min(missing)} to compare with; leave it out")
    for name, num_bytes in source.location.archives.items():
        with counting_bytes(console, f"MD5 of {name}", num_bytes) as advance:
            check_md5(Path(source.location.path) / name, published[name], advance)


def _print_summary(root: Path, splits: dict[str, Any], console: Console) -> None:
    for facts in splits.values():
        # Only what a user may not expect: most files are plain JPEGs.
        others = {kind: number for kind, number in facts["kinds"].items() if kind != "jpeg"}
        kinds = "".join(
            f", {number:,} {kind}" + ("" if kind in (*PLAIN_KINDS, "raw") else " converted")
            for kind, number in others.items()
        )
        skipped = f", {len(facts['skipped']):,} skipped" if facts["skipped"] else ""
        console.print(f"{root / facts['beton']}: {facts['num_samples']:,} images{kinds}{skipped}")


@contextlib.contextmanager
def _only_writer(root: Path) -> Iterator[None]:
    """Hold a lock against a second preparation into the same folder."""
    # flock, not a lock file: the kernel releases it however the process ends, so no stale lock blocks the next attempt.
    descriptor = os.open(root, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot lock a folder: then go without
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"data.root={root}: another preparation is writing there; wait for it") from error
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _cleaned_up_after_failure(root: Path) -> Iterator[None]:
    """After a failure keep the files only if another attempt can continue from them.

    On a full disk delete everything, because other programs need the space too.
    """
    try:
        yield
    except BaseException as error:
        if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or not has_parts(root):
            # All are ours, which `_check_unprepared` has made sure of. The parts last: they are the proof.
            names = (MEAN_IMAGE, *(f"{split}.{end}" for split in SPLITS for end in ("beton", "files.npy")))
            for path in (root / name for name in names):
                path.unlink(missing_ok=True)
                partial_name(path).unlink(missing_ok=True)
            remove_parts(root)
        raise
