"""ImageNet (ILSVRC2012) as a source: its archives read as they are, or what they extract to. Called by prepare.

    ILSVRC2012_img_train.tar       a tar of 1,000 tars, WNID.tar, of files WNID_NUMBER.JPEG
    ILSVRC2012_img_val.tar         ILSVRC2012_val_00000001.JPEG to 00050000; the devkit knows their classes
    ILSVRC2012_devkit_t12.tar.gz   or the folder of that name

A class is a WNID, its label the rank among the sorted WNIDs (as in Caffe, torchvision and timm), whatever its
ILSVRC2012_ID. A split whose archive is not there is looked for as a folder, `data.splits`: class folders, or for the
validation images one flat folder. Kaggle's layout is the third way (kaggle.py). Whatever says the class of an image,
folder, file name, devkit or Kaggle's list, is compared with what else says it (labels.py).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tencrop.config import Data, UserError
from tencrop.data.sources import kaggle
from tencrop.data.sources.archives import Member, tar_members
from tencrop.data.sources.devkit import ARCHIVE as DEVKIT_ARCHIVE
from tencrop.data.sources.devkit import Devkit, find_devkit, read_devkit
from tencrop.data.sources.folder import (
    EXTENSIONS,
    check_no_shards,
    check_num_classes,
    check_same_classes,
    class_folders,
    list_images,
    size_of_file,
    sort_of,
    source_folder,
)
from tencrop.data.sources.labels import GroundTruth, check_folders, check_names, check_same_truth
from tencrop.data.sources.source import FLAT, TAR, TREE, ZIP, SourceFile, SourceLocation, read_original

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
# as in torchvision/datasets/imagenet.py
PUBLISHED_MD5 = {
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT_ARCHIVE: "fa75699e90414af021442c21a62c3abf",
}
MD5_LIST = "MD5SUMS"  # of simulated archives
MD5_LINE = re.compile(r"([0-9a-f]{32}) [ *](.+)")
NUM_IMAGES = {"train": 1_281_167, "val": 50_000}
NUM_VAL_IMAGES_OF_A_CLASS = 50
VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
SUBSET = "set data.subset=true if that is meant"


class IlsvrcSource:
    """Raises UserError for a missing, truncated or unsafe archive, for files without a class or of two, and for counts
    that are not ILSVRC2012's (its devkit's own, for simulated archives) unless `data.subset` is set."""

    def __init__(self, data: Data) -> None:
        path = source_folder(data)
        found = find_devkit(path)
        self.devkit = read_devkit(found) if found else None
        splits, routes = {}, {}
        for split, folder in (("train", data.splits.train), ("val", data.splits.val)):
            splits[split], routes[split] = _locate(path, split, folder)
        zipped = kaggle.read_archive(path / kaggle.ARCHIVE) if ZIP in routes.values() else None
        read = [path / name for name in dict.fromkeys(splits.values()) if (path / name).is_file()]
        read += [found] if found and found.is_file() else []
        archives = {archive.name: archive.stat().st_size for archive in read}
        self.place = SourceLocation(str(path), splits, routes, archives)
        truth = _ground_truth(self.devkit, kaggle.find_ground_truth(path, zipped))
        if routes["val"] != TREE and truth is None:
            raise UserError(
                f"data.source={data.source}: the classes of the validation images are in {DEVKIT_ARCHIVE}, which is not"
                f" there; put it beside them (or its folder, extracted), or Kaggle's {kaggle.SOLUTION}"
            )
        self.left_out: dict[str, Counter[str]] = {split: Counter() for split in splits}
        self.classes, self.files = self._list(path, truth, zipped)
        check_num_classes(data, self.classes)
        if not data.subset:
            self._check_counts()

    def read(self, split: str, file: SourceFile) -> bytes:
        return read_original(self.place, split, file)

    def published_md5(self) -> dict[str, str]:
        """As ILSVRC2012 was published; simulated archives bring their own list."""
        if self.devkit is None or not self.devkit.simulated:
            return PUBLISHED_MD5
        assert self.place.path is not None
        return _md5_list(Path(self.place.path) / MD5_LIST)

    def _list(
        self, path: Path, truth: GroundTruth | None, zipped: kaggle.Archived | None
    ) -> tuple[list[str], dict[str, list[SourceFile]]]:
        """The sorted classes, and the files of both splits in sample order."""
        named: dict[str, dict[str, list[SourceFile]]] = {}  # by split and class; labels follow
        for split, place in self.place.splits.items():
            route, left_out = self.place.routes[split], self.left_out[split]
            if route == TREE:
                named[split] = _class_folders(path, split, place, left_out)
                if split == "val" and truth:
                    check_folders(path / place, _all(named[split]), truth.of_image, said_by=truth.said_by)
            elif split == "train" and zipped:
                named[split] = _zipped_train(zipped.images[split], left_out)
            elif split == "train":
                named[split] = _train_archive(path / place, left_out)
            else:
                assert truth is not None
                members = _flat_files(path / place, left_out) if route == FLAT else tar_members(path / place)
                members = zipped.images[split] if route == ZIP and zipped else members
                named[split] = _by_ground_truth(path / place, members, truth, left_out)
            check_names(path / place, _all(named[split]))
        classes, others = ({name for name, files in named[split].items() if files} for split in ("train", "val"))
        check_same_classes(list(classes), list(others))
        if self.devkit and (strange := classes - set(self.devkit.num_train_images)):
            raise UserError(
                f"data.source: class {min(strange)} is not one of the devkit's {len(self.devkit.wnids)}; remove its"
                " folder, or use data=imagefolder if other classes are meant"
            )
        ordered = sorted(classes, key=os.fsencode)
        files = {}
        for split, by_class in named.items():
            files[split] = [
                file._replace(label=label)
                for label, name in enumerate(ordered)
                for file in sorted(by_class[name], key=lambda file: os.fsencode(file.name))
            ]
        return ordered, files

    def _check_counts(self) -> None:
        simulated = self.devkit is not None and self.devkit.simulated
        if not simulated:
            for split, expected in NUM_IMAGES.items():
                if (found := len(self.files[split])) != expected:
                    raise UserError(
                        f"data.source: {found:,} {split} images, and ILSVRC2012 has {expected:,}; something is missing"
                        f" or too much; {SUBSET}"
                    )
        for split in ("train", "val"):
            per_class = Counter(file.label for file in self.files[split])
            for label, wnid in enumerate(self.classes):
                if split == "train":
                    expected = self.devkit.num_train_images[wnid] if self.devkit else per_class[label]
                else:
                    expected = per_class[label] if simulated else NUM_VAL_IMAGES_OF_A_CLASS
                if per_class[label] != expected:
                    raise UserError(
                        f"data.source: class {wnid} has {per_class[label]} {split} images, and"
                        f" {'the devkit says' if self.devkit else 'ILSVRC2012 has'} {expected}; {SUBSET}"
                    )
        if simulated and (missing := len(self.devkit.ground_truth) - len(self.files["val"])):  # type: ignore[union-attr]
            raise UserError(f"data.source: {missing} val images of the devkit's ground truth are not there; {SUBSET}")


def _locate(path: Path, split: str, folder: str) -> tuple[str, str]:
    """Folder or archive of a split within the user's folder, and its route."""
    if (path / ARCHIVES[split]).is_file():
        return ARCHIVES[split], TAR
    folder = kaggle.folder_within(path, folder)
    if not (path / folder).is_dir():
        if (path / kaggle.ARCHIVE).is_file():
            return kaggle.ARCHIVE, ZIP
        kaggle.check_not_compressed(path)
        check_no_shards(path)
    return folder, FLAT if split == "val" and _is_flat(path / folder) else TREE


def _ground_truth(devkit: Devkit | None, solution: GroundTruth | None) -> GroundTruth | None:
    """The classes of the validation images, by the devkit or Kaggle's list; UserError where the two differ."""
    if devkit is None:
        return solution
    wnids = {number: devkit.wnids[ilsvrc2012_id] for number, ilsvrc2012_id in enumerate(devkit.ground_truth, start=1)}
    truth = GroundTruth("the devkit", wnids)
    if solution:
        check_same_truth(truth, solution)
    return truth


def _all(by_class: dict[str, list[SourceFile]]) -> Iterable[SourceFile]:
    return (file for files in by_class.values() for file in files)


def _class_folders(path: Path, split: str, place: str, left_out: Counter[str]) -> dict[str, list[SourceFile]]:
    names = class_folders(path, split, place)
    by_class: dict[str, list[SourceFile]] = {name: [] for name in names}
    for file in list_images(path / place, names, left_out):
        by_class[file.name.partition("/")[0]].append(file)
    return by_class


def _md5_list(path: Path) -> dict[str, str]:
    """MD5 by file name, from a list as md5sum writes it; UserError where there is none."""
    mend = "simulate the archives anew, or set data.check_md5=false"
    if not path.is_file():
        raise UserError(f"data.check_md5=true: {path}, the list of the archives' MD5, is missing; {mend}")
    sums = {}
    for line in path.read_text(errors="replace").splitlines():
        if not (match := MD5_LINE.fullmatch(line)):
            raise UserError(f"data.check_md5=true: {path}: {line[:80]!r} is not an MD5 and a file's name; {mend}")
        sums[match[2]] = match[1]
    return sums


def _train_archive(path: Path, left_out: Counter[str]) -> dict[str, list[SourceFile]]:
    by_class: dict[str, list[SourceFile]] = {}
    for archive in _not_hidden(tar_members(path), left_out):
        wnid, ending = os.path.splitext(os.path.basename(archive.name))
        if ending != ".tar":
            raise UserError(f"{path}: {archive.name} is not the tar of a class; this is not {ARCHIVES['train']}")
        by_class[wnid] = [
            SourceFile(f"{wnid}/{os.path.basename(member.name)}", 0, member.num_bytes, member.offset)
            for member in _not_hidden(tar_members(path, archive), left_out)
        ]
    return by_class


def _zipped_train(members: Iterable[Member], left_out: Counter[str]) -> dict[str, list[SourceFile]]:
    """Training images of Kaggle's zip, called train/WNID/NAME in it."""
    by_class: dict[str, list[SourceFile]] = {}
    for member in _not_hidden(members, left_out):
        wnid, _, name = member.name.removeprefix("train/").partition("/")
        if name.lower().endswith(EXTENSIONS):
            by_class.setdefault(wnid, []).append(SourceFile(f"{wnid}/{name}", 0, member.num_bytes, member.offset))
        else:
            left_out[sort_of(name)] += 1
    return by_class


def _by_ground_truth(
    path: Path, members: Iterable[Member], truth: GroundTruth, left_out: Counter[str]
) -> dict[str, list[SourceFile]]:
    """Validation images by the class that the ground truth gives to the number in their names."""
    by_class: dict[str, list[SourceFile]] = {wnid: [] for wnid in truth.wnids.values()}
    for member in _not_hidden(members, left_out):
        name = os.path.basename(member.name)
        matched = VAL_NAME.fullmatch(name)
        wnid = truth.wnids.get(int(matched[1])) if matched else None
        if wnid is None:
            raise UserError(f"{path}: {name} is none of the {len(truth.wnids):,} images of the ground truth; remove it")
        by_class[wnid].append(SourceFile(f"{wnid}/{name}", 0, member.num_bytes, member.offset))
    return by_class


def _not_hidden(members: Iterable[Member], left_out: Counter[str]) -> Iterator[Member]:
    """Without what macOS adds where an archive is made anew: ._NAME beside every file."""
    for member in members:
        if os.path.basename(member.name).startswith("."):
            left_out["hidden"] += 1
        else:
            yield member


def _is_flat(folder: Path) -> bool:
    """Whether validation images lie directly in the folder."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(VAL_NAME.fullmatch(entry.name) for entry in entries)


def _flat_files(folder: Path, left_out: Counter[str]) -> list[Member]:
    members = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if VAL_NAME.fullmatch(entry.name):
                members.append(Member(entry.name, 0, size_of_file(entry)))
            else:
                left_out["folders" if entry.is_dir() else sort_of(entry.name)] += 1
    return members
