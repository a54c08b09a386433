"""ImageNet (ILSVRC2012) as a source: its archives read as they are, or what they extract to. Called by prepare.

    ILSVRC2012_img_train.tar       a tar of 1,000 tars, WNID.tar, of files WNID_NUMBER.JPEG
    ILSVRC2012_img_val.tar         ILSVRC2012_val_00000001.JPEG to 00050000; the devkit knows their classes
    ILSVRC2012_devkit_t12.tar.gz   or the folder of that name

A class is a WNID, its label the rank among the sorted WNIDs (as in Caffe, torchvision and timm), whatever its
ILSVRC2012_ID. A split whose archive is not there is looked for as a folder, `data.splits`: class folders, or for the
validation images one flat folder.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tencrop.config import Data, UserError
from tencrop.data.archives import Member, tar_members
from tencrop.data.devkit import ARCHIVE as DEVKIT_ARCHIVE
from tencrop.data.devkit import Devkit, find_devkit, read_devkit
from tencrop.data.folder import check_num_classes, check_same_classes, class_folders, list_images, source_folder
from tencrop.data.originals import FLAT, TAR, TREE, Place, SourceFile, read_original

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
    """Raises UserError for a missing, truncated or unsafe archive, for files without a class, and for counts that are
    not ILSVRC2012's (its devkit's own, for simulated archives) unless `data.subset` is set."""

    def __init__(self, data: Data) -> None:
        path = source_folder(data)
        found = find_devkit(path)
        self.devkit = read_devkit(found) if found else None
        splits, routes = {}, {}
        for split, folder in (("train", data.splits.train), ("val", data.splits.val)):
            if (path / ARCHIVES[split]).is_file():
                splits[split], routes[split] = ARCHIVES[split], TAR
            else:
                splits[split] = folder
                routes[split] = FLAT if split == "val" and _is_flat(path / folder) else TREE
        read = [path / name for split, name in splits.items() if routes[split] == TAR]
        read += [found] if found and found.is_file() else []
        archives = {archive.name: archive.stat().st_size for archive in read}
        self.place = Place(str(path), splits, routes, archives)
        if routes["val"] != TREE and self.devkit is None:
            raise UserError(
                f"data.source={data.source}: the classes of the validation images are in {DEVKIT_ARCHIVE}, which is not"
                " there; put it beside them (or its folder, extracted)"
            )
        self.classes, self.files = self._list(path)
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

    def _list(self, path: Path) -> tuple[list[str], dict[str, list[SourceFile]]]:
        """The sorted classes, and the files of both splits in sample order."""
        named: dict[str, dict[str, list[SourceFile]]] = {}  # by split and class; labels follow
        for split, place in self.place.splits.items():
            if self.place.routes[split] == TREE:
                names = class_folders(path, split, place)
                by_class: dict[str, list[SourceFile]] = {name: [] for name in names}
                for file in list_images(path / place, names):
                    by_class[file.name.partition("/")[0]].append(file)
                named[split] = by_class
            elif split == "train":
                named[split] = _train_archive(path / place)
            else:
                assert self.devkit is not None
                members = _flat_files(path / place) if self.place.routes[split] == FLAT else tar_members(path / place)
                named[split] = _by_ground_truth(path / place, members, self.devkit)
        classes, others = ({name for name, files in named[split].items() if files} for split in ("train", "val"))
        check_same_classes(list(classes), list(others))
        if self.devkit and (strange := classes - set(self.devkit.num_train_images)):
            raise UserError(f"data.source: class {min(strange)} is not one of the devkit's {len(self.devkit.wnids)}")
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
                        f"data.source: class {wnid} has {per_class[label]} {split} images, and the devkit says"
                        f" {expected}; {SUBSET}"
                    )
        if simulated and (missing := len(self.devkit.ground_truth) - len(self.files["val"])):  # type: ignore[union-attr]
            raise UserError(f"data.source: {missing} val images of the devkit's ground truth are not there; {SUBSET}")


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


def _train_archive(path: Path) -> dict[str, list[SourceFile]]:
    by_class: dict[str, list[SourceFile]] = {}
    for archive in tar_members(path):
        wnid, ending = os.path.splitext(os.path.basename(archive.name))
        if ending != ".tar":
            raise UserError(f"{path}: {archive.name} is not the tar of a class; this is not {ARCHIVES['train']}")
        by_class[wnid] = [
            SourceFile(f"{wnid}/{os.path.basename(member.name)}", 0, member.num_bytes, member.offset)
            for member in tar_members(path, archive)
        ]
    return by_class


def _by_ground_truth(path: Path, members: Iterable[Member], devkit: Devkit) -> dict[str, list[SourceFile]]:
    """Validation images by the class that the devkit gives to the number in their names."""
    by_class: dict[str, list[SourceFile]] = {wnid: [] for wnid in devkit.wnids.values()}
    for member in members:
        name = os.path.basename(member.name)
        matched = VAL_NAME.fullmatch(name)
        number = int(matched[1]) if matched else 0
        if not 1 <= number <= len(devkit.ground_truth):
            raise UserError(f"{path}: {name} is none of the {len(devkit.ground_truth):,} images of the ground truth")
        wnid = devkit.wnids[devkit.ground_truth[number - 1]]
        by_class[wnid].append(SourceFile(f"{wnid}/{name}", 0, member.num_bytes, member.offset))
    return by_class


def _is_flat(folder: Path) -> bool:
    """Whether validation images lie directly in the folder."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(VAL_NAME.fullmatch(entry.name) for entry in entries)


def _flat_files(folder: Path) -> list[Member]:
    with os.scandir(folder) as entries:
        return [Member(entry.name, 0, entry.stat().st_size) for entry in entries if VAL_NAME.fullmatch(entry.name)]
