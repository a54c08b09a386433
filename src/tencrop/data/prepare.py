"""From a source to a prepared folder: two .beton files, tables of files, statistics, manifest. Called by prepare.py.

The manifest comes last: without one a folder is not prepared, and an interrupted preparation is simply run again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.features
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

import tencrop
from tencrop.config import Data, StoreOptions, UserError
from tencrop.data.digits import DigitsSource, permutation
from tencrop.data.encode import PLAIN_KINDS, Undecodable, encode
from tencrop.data.folder import FolderSource, Source
from tencrop.data.manifest import FORMAT, SPLITS, open_split, read_manifest, write_manifest
from tencrop.data.statistics import ColourSums
from tencrop.data.store import write_npy, write_split

NUM_TRIED = 32  # files of a split that are tried beforehand, to estimate size and time


def prepare(data: Data, *, workers: int | str = "auto", progress: bool = True) -> Path:
    """Write the prepared folder `data.root` and return it; where it is prepared already, only say so.

    `workers` threads decode (auto: the cores granted); `progress=False` prints nothing. Raises UserError for a
    source that cannot be used, an undecodable file (unless `data.undecodable` is skip), too little space, or a
    folder prepared from other files or with other options; OSError where the disk fills up all the same.
    """
    root = Path(data.root)
    console = Console(quiet=not progress, highlight=False, soft_wrap=True)
    if (root / "manifest.json").exists():
        _check_prepared(root, data)
        console.print(f"{root}: already prepared")
        return root
    source: Source = DigitsSource() if data.name == "digits" else FolderSource(data)
    _check_root(root, source)
    root.mkdir(parents=True, exist_ok=True)
    num_threads = _cores_granted() if workers == "auto" else int(workers)
    with _only_writer(root), _cleaned_up_after_failure(root):
        _announce(data, source, num_threads, console)
        sums = ColourSums()
        splits = {}
        for split in SPLITS:
            with _progress_bar(console, split, len(source.files[split])) as advance:
                splits[split] = write_split(
                    root,
                    split,
                    source,
                    store_options(data, split),
                    undecodable=data.undecodable,
                    num_threads=num_threads,
                    count=sums.add if split == "train" else None,
                    advance=advance,
                )
        write_npy(root / "mean_image.npy", sums.mean_image())
        write_manifest(root, _manifest(data, source, splits, sums))
    _print_summary(root, splits, console)
    return root


def store_options(data: Data, split: str) -> StoreOptions:
    """The training split is stored as chosen; the evaluation split keeps its original bytes [11]; digits have none."""
    if split == "train" or data.name == "digits":
        return data.store
    return StoreOptions(mode="jpeg", short_side=None, max_side=None, quality=data.store.quality)


def _manifest(data: Data, source: Source, splits: dict[str, Any], sums: ColourSums) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": data.name,
        "options": _options(data),
        "classes": source.classes,
        "splits": splits,
        "statistics": sums.statistics(),
        "mean_image": "mean_image.npy",
        "source": {
            "path": source.path,
            "splits": source.splits,
            **({"permutation": permutation()} if data.name == "digits" else {}),
        },
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


def _check_prepared(root: Path, data: Data) -> None:
    """UserError unless the folder was prepared from these files with these options, and is whole."""
    manifest = read_manifest(root, data.name)
    mend = "name another data.root, or delete this one to prepare it anew"
    if (manifest["source"]["path"] is None) != (data.name == "digits"):
        raise UserError(f"data.root={root}: holds prepared {manifest['name']}, not {data.name}; {mend}")
    for key, value in _options(data).items():
        if (found := manifest["options"].get(key)) != value:
            raise UserError(f"data.{key}={value}: {root} was prepared with data.{key}={found}; {mend}")
    splits = {split: open_split(root, split, data=data.name) for split in SPLITS}
    if data.name == "digits" or data.source is None or not Path(data.source).is_dir():
        return
    source = FolderSource(data)
    for split, opened in splits.items():
        skipped = {entry["name"] for entry in manifest["splits"][split]["skipped"]}
        now = [(os.fsencode(file.name), file.num_bytes) for file in source.files[split] if file.name not in skipped]
        if now != list(zip(opened.files["name"].tolist(), opened.files["bytes"].tolist(), strict=True)):
            raise UserError(f"data.source={data.source}: not the files that {root} was prepared from ({split}); {mend}")


def _check_root(root: Path, source: Source) -> None:
    if root.exists() and not root.is_dir():
        raise UserError(f"data.root={root}: is a file; name a folder for the prepared data")
    if source.path is None:
        return
    for split, folder in source.splits.items():
        images = (Path(source.path) / folder).resolve()
        if root.resolve().is_relative_to(images):
            raise UserError(f"data.root={root}: lies among the images of the {split} split ({images}); name another")


def _announce(data: Data, source: Source, num_threads: int, console: Console) -> None:
    """Print what will be written, how long it may take and the free space; UserError where that is too little."""
    num_bytes, seconds = 0.0, 0.0
    for split in SPLITS:
        bytes_of_split, seconds_of_split = _estimate(source, split, store_options(data, split))
        num_bytes, seconds = num_bytes + bytes_of_split, seconds + seconds_of_split / num_threads
    free = shutil.disk_usage(data.root).free
    counts = " and ".join(f"{len(source.files[split]):,} {split}" for split in SPLITS)
    console.print(
        f"{data.name}: {counts} images of {len(source.classes):,} classes -> {data.root}\n"
        f"about {_readable(num_bytes)} to write ({_readable(free)} free),"
        f" about {datetime.timedelta(seconds=round(seconds) + 1)} with {num_threads} threads"
    )
    if num_bytes > free:
        raise UserError(
            f"data.root={data.root}: about {_readable(num_bytes)} would be written and {_readable(free)} are free;"
            " name a larger disk, or store less (data.store.short_side=256, data.store.mode=jpeg)"
        )


def _estimate(source: Source, split: str, options: StoreOptions) -> tuple[float, float]:
    """(bytes to write, seconds of one thread) of a split, from a few files spread evenly over it."""
    files = source.files[split]
    tried, sums = files[:: -(-len(files) // NUM_TRIED)], ColourSums()
    read_bytes, stored_bytes, start = 0, 0, time.perf_counter()
    for file in tried:
        with contextlib.suppress(Undecodable):  # write_split says so, with the name
            encoded = encode(source.read(split, file.name), file.label, options)
            read_bytes, stored_bytes = read_bytes + encoded.num_bytes, stored_bytes + len(encoded.sample.payload)
            sums.add(encoded.image)
    seconds = (time.perf_counter() - start) / len(tried) * len(files)
    total_bytes = sum(file.num_bytes for file in files)
    scale = total_bytes / max(read_bytes, 1) if total_bytes else len(files) / len(tried)
    return stored_bytes * scale, seconds


def _readable(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.4g} TB"


def _print_summary(root: Path, splits: dict[str, Any], console: Console) -> None:
    for facts in splits.values():
        others = {kind: number for kind, number in facts["kinds"].items() if kind not in PLAIN_KINDS}
        kinds = "".join(f", {number:,} {kind} stored as pixels" for kind, number in others.items())
        skipped = f", {len(facts['skipped']):,} skipped" if facts["skipped"] else ""
        console.print(f"{root / facts['beton']}: {facts['num_samples']:,} images{kinds}{skipped}")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.0f} images/s")


@contextlib.contextmanager
def _progress_bar(console: Console, split: str, total: int) -> Iterator[Callable[[], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console.quiet) as bar:
        task = bar.add_task(split, total=total)
        yield lambda: bar.advance(task)


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
    """Remove what was written if the rest cannot be: it would only fill the disk."""
    try:
        yield
    except BaseException:
        for name in ("mean_image.npy", *(f"{split}.{end}" for split in SPLITS for end in ("beton", "files.npy"))):
            (root / name).unlink(missing_ok=True)
        raise


def _cores_granted() -> int:
    return int(os.environ.get("SLURM_CPUS_PER_TASK", 0)) or len(os.sched_getaffinity(0))
