"""Test sets for networks trained on ImageNet: ImageNet-V2 (three variants), ImageNet-A, -R and -Sketch.

They have no training split. Labels are ImageNet's 0 to 999, so a network trained on ImageNet needs no other last
layer. ImageNet-A and -R have images of 200 of the 1,000 classes (`classes_within`).

imagenetv2-*-format-val/LABEL/*.jpeg   LABEL is 0 to 999, without leading zeros (Recht et al. 2019)
imagenet-a/WNID/*.jpg                  natural adversarial examples (Hendrycks et al. 2021); also as imagenet-a.tar
imagenet-r/WNID/*.jpg                  renditions (Hendrycks et al. 2021); also as imagenet-r.tar
sketch/WNID/*.JPEG                     black and white sketches (Wang et al. 2019); also as ImageNet-Sketch.zip
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tencrop.config import Data, UserError
from tencrop.data.sources.archives import tar_members, zip_members
from tencrop.data.sources.class_names import imagenet_wnids
from tencrop.data.sources.folder import (
    EXTENSIONS,
    check_num_classes,
    class_folders,
    kind_of,
    list_images,
    source_folder,
    subfolders,
)
from tencrop.data.sources.source import TAR, TREE, ZIP, SourceFile, SourceLocation, read_original

SUBSET = "set data.subset=true if this is intended"


@dataclass(frozen=True)
class ImagenetTestSet:
    """A test set as its authors published it."""

    title: str
    archive: str
    folder: str  # what the archive extracts to
    num_images: int
    num_images_per_class: int | None = None  # None: the number differs by class
    classes: str = "imagenet"  # argument of imagenet_wnids
    is_numbered: bool = False  # class folders are named by label instead of WNID

    @property
    def labels(self) -> dict[str, int]:
        """Label by class folder."""
        # Not by position: sorted as text, folder 10 follows folder 1, and all but 12 classes would get a wrong label.
        label_of = {wnid: label for label, wnid in enumerate(imagenet_wnids())}
        wnids = imagenet_wnids(self.classes)
        return {str(label_of[wnid]) if self.is_numbered else wnid: label_of[wnid] for wnid in wnids}


def _v2(title: str, name: str) -> ImagenetTestSet:
    folder = f"imagenetv2-{name}-format-val"
    return ImagenetTestSet(f"ImageNet-V2 {title}", f"imagenetv2-{name}.tar.gz", folder, 10_000, 10, is_numbered=True)


TEST_SETS = {
    "imagenet_v2": _v2("MatchedFrequency", "matched-frequency"),
    "imagenet_v2_threshold": _v2("Threshold0.7", "threshold0.7"),
    "imagenet_v2_top_images": _v2("TopImages", "top-images"),
    "imagenet_a": ImagenetTestSet("ImageNet-A", "imagenet-a.tar", "imagenet-a", 7_500, classes="imagenet_a"),
    "imagenet_r": ImagenetTestSet("ImageNet-R", "imagenet-r.tar", "imagenet-r", 30_000, classes="imagenet_r"),
    "imagenet_sketch": ImagenetTestSet("ImageNet-Sketch", "ImageNet-Sketch.zip", "sketch", 50_889),
}


def classes_within(name: str) -> np.ndarray | None:
    """The labels int64 [200] among which ImageNet-A and -R are classified; None for all other data.

    Their authors use only the logits of these classes. Errors among all 1,000 classes are higher.
    """
    found = TEST_SETS.get(name)
    if found is None or found.classes == "imagenet":
        return None
    # Ascending, as ranks_within requires: WNIDs are sorted, and so are their labels.
    return np.array(list(found.labels.values()), np.int64)


def check_has_training_split(name: str) -> None:
    """Raise UserError if the data set is a test set, on which nothing can be trained."""
    if name in TEST_SETS:
        raise UserError(
            f"data={name}: {TEST_SETS[name].title} is a test set without training images; evaluate a network trained on"
            f" ImageNet with evaluate.py data={name} checkpoint=RUN/checkpoints/last.ckpt, or weights=FILE model=NAME"
        )


class ImagenetTestSource:
    """The images of a test set, from its published archive or from the extracted folder.

    Raises UserError for class folders that do not belong to the set. Unless `data.subset` is true, also for missing
    classes and a number of images other than the published one.
    """

    def __init__(self, data: Data) -> None:
        self.published = TEST_SETS[data.name]
        # Images of a reduced store would be resampled twice, and errors on them not comparable with published ones.
        if (data.store.mode, data.store.short_side, data.store.max_side) != ("jpeg", None, None):
            raise UserError(f"data.store: {self.published.title} keeps its original files; leave data.store out")
        path = source_folder(data)
        self.classes = list(imagenet_wnids())
        check_num_classes(data, self.classes)
        self.left_out: dict[str, Counter[str]] = {"val": Counter()}
        archive = path / self.published.archive
        # Not the tar.gz of ImageNet-V2: gzip can only be read from its beginning.
        if archive.is_file() and archive.suffix in (".tar", ".zip"):
            route, size = TAR if archive.suffix == ".tar" else ZIP, archive.stat().st_size
            self.location = SourceLocation(str(path), {"val": archive.name}, {"val": route}, {archive.name: size})
            by_class = self._archived(archive)
        else:
            folder = self._folder_within(path, data.splits.val)
            self.location = SourceLocation(str(path), {"val": folder}, {"val": TREE})
            by_class = self._extracted(path, folder)
        labels = self.published.labels
        # Sorted bytewise by folder and name, as in every source, so ImageNet-V2's labels do not ascend.
        ordered = sorted(by_class.items(), key=lambda entry: os.fsencode(entry[0]))
        self.files = {
            "val": [
                file._replace(label=labels[name])
                for name, files in ordered
                for file in sorted(files, key=lambda file: os.fsencode(file.name))
            ]
        }
        if not data.subset:
            self._check_complete(path / self.location.splits["val"], set(by_class))

    def read(self, split: str, file: SourceFile) -> bytes:
        return read_original(self.location, split, file)

    def published_md5(self) -> dict[str, str]:
        return {}

    def _folder_within(self, path: Path, folder: str) -> str:
        """The folder that holds the class folders: `folder`, or "." if they lie in `path` itself."""
        if not (path / folder).is_dir():
            if (path / self.published.archive).is_file():
                raise UserError(
                    f"{path / self.published.archive}: is compressed, so its images cannot be read in place; extract it"
                    f" first: tar xzf {self.published.archive}"
                )
            if set(subfolders(path)) & set(self.published.labels):
                folder = "."
        # By the folder's name: the variants of ImageNet-V2 have the same classes and the same number of images in each.
        name = (path / folder).resolve().name
        if other := next((key for key, one in TEST_SETS.items() if one.folder == name != self.published.folder), None):
            raise UserError(f"{path / folder}: is {TEST_SETS[other].title}; use data={other}")
        return folder

    def _extracted(self, path: Path, folder: str) -> dict[str, list[SourceFile]]:
        names = class_folders(path, "val", folder)
        self._check_names(path / folder, names)
        by_class: dict[str, list[SourceFile]] = {name: [] for name in names}
        for file in list_images(path / folder, names, self.left_out["val"]):
            by_class[file.name.partition("/")[0]].append(file)
        return by_class

    def _archived(self, archive: Path) -> dict[str, list[SourceFile]]:
        by_class: dict[str, list[SourceFile]] = {}
        for member in (tar_members if archive.suffix == ".tar" else zip_members)(archive):
            # The zip and the tars contain a top folder, which is no part of a sample's name: the same images in a
            # folder must get the same names.
            name = member.name.removeprefix(f"{self.published.folder}/")
            image = name.rpartition("/")[2]
            if image.startswith(".") or not image.lower().endswith(EXTENSIONS) or "/" not in name:
                self.left_out["val"][kind_of(image)] += 1  # such as a README, or the ._ files of macOS
                continue
            file = SourceFile(name, 0, member.num_bytes, member.offset)
            by_class.setdefault(name.partition("/")[0], []).append(file)
        self._check_names(archive, list(by_class))
        if not by_class:
            raise UserError(f"{archive}: holds no image; download it again")
        return by_class

    def _check_names(self, location: Path, names: list[str]) -> None:
        labels = self.published.labels
        if unknown := [name for name in names if name not in labels]:
            wanted = (
                "0 to 999" if self.published.is_numbered else f"{len(labels):,} WNIDs, such as {next(iter(labels))}"
            )
            raise UserError(
                f"{location}: the class folder {unknown[0]} is none of {self.published.title}, whose folders are named"
                f" {wanted}; remove it, or name the data set that it belongs to with data=NAME"
            )

    def _check_complete(self, location: Path, names: set[str]) -> None:
        title = self.published.title
        if missing := [name for name in self.published.labels if name not in names]:
            more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
            raise UserError(f"{location}: the class folder {missing[0]}{more} of {title} is missing; {SUBSET}")
        if (found := len(self.files["val"])) != self.published.num_images:
            raise UserError(
                f"{location}: {found:,} images, but {title} has {self.published.num_images:,}; add or remove images, or"
                f" {SUBSET}"
            )
        # The total alone is not enough: a missing image and an extra one of another class leave it unchanged.
        expected, counts = self.published.num_images_per_class, Counter(file.label for file in self.files["val"])
        if expected and (wrong := [label for label, number in sorted(counts.items()) if number != expected]):
            raise UserError(
                f"{location}: class {wrong[0]} has {counts[wrong[0]]} images, but {title} has {expected}; {SUBSET}"
            )
