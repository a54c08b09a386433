"""Source of ImageNet (ILSVRC2012) images: the published archives, or the folders that they extract to.

    ILSVRC2012_img_train.tar       a tar of 1,000 tars, WNID.tar, of files WNID_NUMBER.JPEG
    ILSVRC2012_img_val.tar         ILSVRC2012_val_00000001.JPEG to 00050000; the devkit has their classes
    ILSVRC2012_devkit_t12.tar.gz   or its extracted folder

Classes are WNIDs. The label of a class is its index among the sorted WNIDs (as in Caffe, torchvision and timm), not its
ILSVRC2012_ID. If the archive of a split is missing, the folder `data.splits` is used instead. It contains one folder
per class; the validation images may also be in one flat folder. Kaggle's layout (kaggle.py) is a third alternative. The
class of an image may be stated by its folder, its file name, the devkit and Kaggle's list; labels.py checks that all
that are present agree.
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
    kind_of,
    list_images,
    size_of_file,
    source_folder,
)
from tencrop.data.sources.labels import GroundTruth, check_folders, check_names, check_same_truth
from tencrop.data.sources.source import FLAT, TAR, TREE, ZIP, SourceFile, SourceLocation, read_original

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
# The same as in torchvision/datasets/imagenet.py
PUBLISHED_MD5 = {
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT_ARCHIVE: "fa75699e90414af021442c21a62c3abf",
}
MD5_LIST = "MD5SUMS"  # file with the MD5 sums of simulated archives
MD5_LINE = re.compile(r"([0-9a-f]{32}) [ *](.+)")
NUM_IMAGES = {"train": 1_281_167, "val": 50_000}
NUM_VAL_IMAGES_OF_A_CLASS = 50
VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
SUBSET = "set data.subset=true if this is intended"


class IlsvrcSource:
    """The images of ILSVRC2012, in any of its layouts.

    Raises UserError for a missing, truncated or unsafe archive, and for files without a class or with contradictory
    classes. Also raises it if the number of images differs from ILSVRC2012's (for simulated archives, from their
    devkit's), unless `data.subset` is set.
    """

    def __init__(self, data: Data) -> None:
        path = source_folder(data)
        # Locate both splits before indexing any archive, so that a wrong layout is reported at once, not after minutes.
        found = find_devkit(path)
        self.devkit = read_devkit(found) if found else None
        splits, routes = {}, {}
        for split, folder in (("train", data.splits.train), ("val", data.splits.val)):
            splits[split], routes[split] = _locate(path, split, folder)
        # Only where a split is read from it: its directory has more than a million entries.
        zipped = kaggle.read_archive(path / kaggle.ARCHIVE) if ZIP in routes.values() else None
        read = [path / name for name in dict.fromkeys(splits.values()) if (path / name).is_file()]
        read += [found] if found and found.is_file() else []
        # prepare.py compares these sizes when it is run again, which takes no time; indexing the archives takes
        # minutes.
        archives = {archive.name: archive.stat().st_size for archive in read}
        self.location = SourceLocation(str(path), splits, routes, archives)
        truth = _ground_truth(self.devkit, kaggle.find_ground_truth(path, zipped))
        # The validation archive and a flat folder have numbers for names: only a list tells the classes.
        if routes["val"] != TREE and truth is None:
            raise UserError(
                f"data.source={data.source}: the classes of the validation images are in {DEVKIT_ARCHIVE}, which is"
                f" missing; put it (or its extracted folder) or Kaggle's {kaggle.SOLUTION} beside them"
            )
        self.left_out: dict[str, Counter[str]] = {split: Counter() for split in splits}
        self.classes, self.files = self._list(data, path, truth, zipped)
        check_num_classes(data, self.classes)
        if not data.subset:
            self._check_counts()

    def read(self, split: str, file: SourceFile) -> bytes:
        return read_original(self.location, split, file)

    def published_md5(self) -> dict[str, str]:
        """Expected MD5 sums by archive name; those of simulated archives are read from their own list."""
        if self.devkit is None or not self.devkit.simulated:
            # Only a devkit can mark archives as simulated. Without one they are taken for the published ones.
            return PUBLISHED_MD5
        assert self.location.path is not None
        return _md5_list(Path(self.location.path) / MD5_LIST)

    def _list(
        self, data: Data, path: Path, truth: GroundTruth | None, zipped: kaggle.Archived | None
    ) -> tuple[list[str], dict[str, list[SourceFile]]]:
        """The sorted classes, and the files of both splits in sample order."""
        # First list all files by class, with label 0: the labels are known only after all classes have been found.
        named: dict[str, dict[str, list[SourceFile]]] = {}  # by split and class
        for split, location in self.location.splits.items():
            route, left_out = self.location.routes[split], self.left_out[split]
            # A folder of class folders states the classes by itself; if there is a ground truth too, the two must
            # agree.
            if route == TREE:
                named[split] = _class_folders(path, split, location, left_out)
                if split == "val" and truth:
                    check_folders(path / location, _all(named[split]), truth.of_image, stated_by=truth.stated_by)
            elif split == "train" and zipped:
                named[split] = _zipped_train(zipped.images[split], left_out)
            elif split == "train":
                named[split] = _train_archive(path / location, left_out)
            else:
                assert truth is not None
                members = _flat_files(path / location, left_out) if route == FLAT else tar_members(path / location)
                members = zipped.images[split] if route == ZIP and zipped else members
                named[split] = _by_ground_truth(path / location, members, truth, left_out)
            check_names(path / location, _all(named[split]))
        # In a subset, the ground truth also names classes that have no files here; leave those out.
        classes, others = ({name for name, files in named[split].items() if files} for split in ("train", "val"))
        check_same_classes(list(classes), list(others), subset=data.subset)
        # One extra folder would shift the labels of all classes that sort after it, and published weights would seem
        # wrong.
        if self.devkit and (unknown := classes - set(self.devkit.num_train_images)):
            raise UserError(
                f"data.source: class {min(unknown)} is not one of the devkit's {len(self.devkit.wnids)}; remove its"
                " folder, or use data=imagefolder if other classes are intended"
            )
        ordered = sorted(classes, key=os.fsencode)
        files = {}
        for split, by_class in named.items():
            files[split] = [
                file._replace(label=label)
                for label, name in enumerate(ordered)
                for file in sorted(by_class.get(name, []), key=lambda file: os.fsencode(file.name))
            ]
        return ordered, files

    def _check_counts(self) -> None:
        """Raise UserError for missing or extra images, since a partial download would otherwise go unnoticed."""
        # Simulated archives have as many images as the tree that they were made from: their devkit alone knows.
        simulated = self.devkit is not None and self.devkit.simulated
        if not simulated:
            for split, expected in NUM_IMAGES.items():
                if (found := len(self.files[split])) != expected:
                    raise UserError(
                        f"data.source: {found:,} {split} images, but ILSVRC2012 has {expected:,}; add or remove images,"
                        f" or {SUBSET}"
                    )
        # Also count per class: a missing image and an extra one would leave the total unchanged.
        for split in ("train", "val"):
            per_class = Counter(file.label for file in self.files[split])
            for label, wnid in enumerate(self.classes):
                if split == "train":
                    expected = self.devkit.num_train_images[wnid] if self.devkit else per_class[label]
                else:
                    expected = per_class[label] if simulated else NUM_VAL_IMAGES_OF_A_CLASS
                if per_class[label] != expected:
                    raise UserError(
                        f"data.source: class {wnid} has {per_class[label]} {split} images, but"
                        f" {'the devkit lists' if self.devkit else 'ILSVRC2012 has'} {expected}; {SUBSET}"
                    )
        if simulated and (missing := len(self.devkit.ground_truth) - len(self.files["val"])):  # type: ignore[union-attr]
            raise UserError(f"data.source: {missing} val images of the devkit's ground truth are missing; {SUBSET}")


def _locate(path: Path, split: str, folder: str) -> tuple[str, str]:
    """Folder or archive of a split in the user's folder, and its route (how to read it). Archives take precedence."""
    if (path / ARCHIVES[split]).is_file():
        return ARCHIVES[split], TAR
    folder = kaggle.folder_within(path, folder)
    if not (path / folder).is_dir():
        if (path / kaggle.ARCHIVE).is_file():
            return kaggle.ARCHIVE, ZIP
        # Neither folder nor archive: name what is there instead of "no such folder", which would be of little help.
        kaggle.check_not_compressed(path)
        check_no_shards(path)
    return folder, FLAT if split == "val" and _is_flat(path / folder) else TREE


def _ground_truth(devkit: Devkit | None, solution: GroundTruth | None) -> GroundTruth | None:
    """The classes of the validation images, from the devkit or Kaggle's list; UserError if the two differ."""
    if devkit is None:
        return solution
    wnids = {number: devkit.wnids[ilsvrc2012_id] for number, ilsvrc2012_id in enumerate(devkit.ground_truth, start=1)}
    truth = GroundTruth("the devkit", wnids)
    if solution:
        check_same_truth(truth, solution)
    return truth


def _all(by_class: dict[str, list[SourceFile]]) -> Iterable[SourceFile]:
    return (file for files in by_class.values() for file in files)


def _class_folders(path: Path, split: str, location: str, left_out: Counter[str]) -> dict[str, list[SourceFile]]:
    names = class_folders(path, split, location)
    by_class: dict[str, list[SourceFile]] = {name: [] for name in names}
    for file in list_images(path / location, names, left_out):
        by_class[file.name.partition("/")[0]].append(file)
    return by_class


def _md5_list(path: Path) -> dict[str, str]:
    """MD5 sums by file name, from a file in the format of md5sum. Raises UserError if it is missing or malformed."""
    remedy = "simulate the archives again, or set data.check_md5=false"
    if not path.is_file():
        raise UserError(f"data.check_md5=true: {path}, the list of the archives' MD5, is missing; {remedy}")
    sums = {}
    for line in path.read_text(errors="replace").splitlines():
        if not (match := MD5_LINE.fullmatch(line)):
            raise UserError(f"data.check_md5=true: {path}: {line[:80]!r} is not an MD5 and a file name; {remedy}")
        sums[match[2]] = match[1]
    return sums


def _train_archive(path: Path, left_out: Counter[str]) -> dict[str, list[SourceFile]]:
    """Training images by class, from the tar of tars. Offsets are relative to the outer archive."""
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
    """Training images by class, from Kaggle's zip, where their names are train/WNID/NAME."""
    by_class: dict[str, list[SourceFile]] = {}
    for member in _not_hidden(members, left_out):
        wnid, _, name = member.name.removeprefix("train/").partition("/")
        if name.lower().endswith(EXTENSIONS):
            by_class.setdefault(wnid, []).append(SourceFile(f"{wnid}/{name}", 0, member.num_bytes, member.offset))
        else:
            left_out[kind_of(name)] += 1
    return by_class


def _by_ground_truth(
    path: Path, members: Iterable[Member], truth: GroundTruth, left_out: Counter[str]
) -> dict[str, list[SourceFile]]:
    """Validation images by class; the number in a file's name is looked up in the ground truth."""
    # The archive is flat; we add the class folder, so that names have the form CLASS/NAME in every source.
    by_class: dict[str, list[SourceFile]] = {wnid: [] for wnid in truth.wnids.values()}
    for member in _not_hidden(members, left_out):
        name = os.path.basename(member.name)
        matched = VAL_NAME.fullmatch(name)
        wnid = truth.wnids.get(int(matched[1])) if matched else None
        if wnid is None:
            raise UserError(
                f"{path}: {name} is not one of the {len(truth.wnids):,} images of the ground truth; remove it"
            )
        by_class[wnid].append(SourceFile(f"{wnid}/{name}", 0, member.num_bytes, member.offset))
    return by_class


def _not_hidden(members: Iterable[Member], left_out: Counter[str]) -> Iterator[Member]:
    """Skip and count hidden files, such as the ._NAME that macOS adds to an archive for every file."""
    for member in members:
        if os.path.basename(member.name).startswith("."):
            left_out["hidden"] += 1
        else:
            yield member


def _is_flat(folder: Path) -> bool:
    """Whether the folder itself contains validation images, rather than class folders."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(VAL_NAME.fullmatch(entry.name) for entry in entries)


def _flat_files(folder: Path, left_out: Counter[str]) -> list[Member]:
    """The validation images in the folder itself; everything else is counted in `left_out`."""
    members = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if VAL_NAME.fullmatch(entry.name):
                members.append(Member(entry.name, 0, size_of_file(entry)))
            else:
                left_out["folders" if entry.is_dir() else kind_of(entry.name)] += 1
    return members
