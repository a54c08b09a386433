"""report.py labels=real.json: errors of saved ImageNet val scores by the label sets of ImageNet-ReaL.

Beyer et al. 2020 (Are we done with ImageNet?) give each image of ILSVRC2012's val split the set of all labels that fit
it, which may be empty. An answer is right if it is in the set; images with an empty set are not counted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tencrop.config import UserError
from tencrop.config.documents import Between, read_json
from tencrop.config.writable import check_writable
from tencrop.data.sources.class_names import imagenet_wnids
from tencrop.data.sources.ilsvrc import NUM_IMAGES
from tencrop.data.sources.labels import VAL_IMAGE
from tencrop.evaluation.errors import NOT_FINITE, ErrorRate, error_rate
from tencrop.evaluation.score_files import is_score_file, read_ranks
from tencrop.files import atomic_write, file_sha256
from tencrop.printable import markdown_text, printable
from tencrop.report.blocks import Block, print_paragraphs
from tencrop.report.score_report import percent
from tencrop.report.score_sources import SUFFIX, SavedScores, read_saved, score_files
from tencrop.report.templating import render
from tencrop.text_tables import csv_table

MARKDOWN, CSV, HTML = "labels.md", "labels.csv", "labels.html"
REMEDY = "give real.json of github.com/google-research/reassessed-imagenet"


@dataclass(frozen=True)
class LabelSetErrors:
    """The errors of one score file by label sets, beside those by val's single labels."""

    path: Path  # of the score file
    about: str  # network, data, protocol and weights
    num_images: int  # in the score file
    by_sets: dict[int, ErrorRate]  # by k; of the images that have labels
    by_single_label: dict[int, ErrorRate]  # of the same images
    of_all_images: dict[int, ErrorRate]  # by the single labels


def report_label_sets(
    labels: str, inputs: Sequence[str], *, average: str, ks: Sequence[int], output: Path, data_root: str | None = None
) -> int:
    """Print the errors of every score file in `inputs` by the label sets in the file `labels`; write them to `output`.

    inputs: score files, run folders, or folders of evaluate.py; empty: all scores of data=imagenet in runs/ and
    evaluations/. Returns the exit code. Raises UserError if the labels or all score files cannot be used.
    """
    # The digest tells which version of the labels a table was counted with.
    sets, source = read_label_sets(Path(labels)), f"{Path(labels).name} ({file_sha256(Path(labels))[:12]})"
    found, broken = list[LabelSetErrors](), list[UserError]()
    paths = [path for one in inputs for path in score_files(one, key="scores")] or _all_score_files(broken)
    check_writable(output / MARKDOWN, remedy="make room, or name another folder with output=DIR")
    for path in paths:
        try:
            found.append(label_set_errors(read_saved(path, average, data_root=data_root), sets, ks))
        except UserError as error:
            broken.append(error)
    if not found:
        raise broken[0]
    pairs = [(one, _block(one, source)) for one in found]
    print_paragraphs([f"{printable(str(one.path))}\n{one.about}\n{block.terminal()}" for one, block in pairs])
    contents = {MARKDOWN: _markdown(pairs), CSV: _csv(pairs), HTML: _html(pairs, source)}
    output.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        atomic_write(output / name, printable(content).encode())
    print_paragraphs(["\n".join(str(output / name) for name in contents)])
    for refusal in broken:
        print(printable(f"error: left out: {refusal}"), file=sys.stderr)
    return 2 if broken else 0


def read_label_sets(path: Path) -> list[list[int]]:
    """The labels, 0 to 999, of the images ILSVRC2012_val_00000001, 00000002, ...; UserError for another file."""
    shape = [[Between(0, len(imagenet_wnids()) - 1)]]
    if not path.is_file():
        raise UserError(f"labels={path}: there is no such file; {REMEDY}")
    sets = read_json(path, shape, what="a list with a list of labels (0 to 999) for each image", remedy=REMEDY)
    if len(sets) != NUM_IMAGES["val"]:
        raise UserError(
            f"labels={path}: has {len(sets):,} images, but ILSVRC2012 val has {NUM_IMAGES['val']:,}; {REMEDY}"
        )
    return sets


def label_set_errors(saved: SavedScores, sets: Sequence[Sequence[int]], ks: Sequence[int]) -> LabelSetErrors:
    """The errors of a score file by label sets. Raises UserError if its images are not ILSVRC2012's val images."""
    # Image names count from 1, the list from 0.
    own = [sets[number - 1] for number in _image_numbers(saved)]
    has_labels = np.array([len(labels) > 0 for labels in own])
    # A subset of the split may have images without labels only, and the rates would be 0 / 0.
    if not has_labels.any():
        raise UserError(f"{saved.path}: none of its images has a label in the file of labels")
    ranks = ranks_of_sets(saved.scores[has_labels], [labels for labels in own if labels])
    # On the same images, so that the difference is due to the labels alone.
    single = saved.ranks[has_labels]
    model, data, weights = (saved.metadata.get(key, "?") for key in ("model", "data", "weights_sha256"))
    return LabelSetErrors(
        saved.path,
        f"{model} on {data}, {saved.name}, averaged {saved.average}; weights {weights[:12]}",
        len(own),
        {k: error_rate(ranks, k) for k in ks},
        {k: error_rate(single, k) for k in ks},
        {k: error_rate(saved.ranks, k) for k in ks},
    )


def ranks_of_sets(scores: np.ndarray, sets: Sequence[Sequence[int]]) -> np.ndarray:
    """How many classes outside an image's label set score at least as high as the best one in it: int32 [N].

    scores: float [N, K]; sets: N lists of labels, none empty. With one label an image, equal to count_ranks.
    """
    # Labels of the set do not compete with each other: with two right answers, the second is not an error of the first.
    is_label = np.zeros(scores.shape, bool)
    is_label[np.repeat(np.arange(len(sets)), [len(labels) for labels in sets]), np.concatenate(sets)] = True
    best = np.where(is_label, scores, -np.inf).max(1, keepdims=True)
    ranks = ((scores >= best) & ~is_label).sum(1, dtype=np.int32)
    return np.where(np.isfinite(scores).all(1), ranks, np.int32(NOT_FINITE))


def _image_numbers(saved: SavedScores) -> list[int]:
    """The number in the name of each image, in the order of the scores."""
    # Not the sample index, which counts by class folder: the file of labels is in the order of the images' names.
    saved.check_samples()
    names = saved.image_names
    if names is None:
        raise UserError(
            f"{saved.path}: the names of its images are not known here; give the prepared data with data_root=DIR"
        )
    if saved.class_folders != list(imagenet_wnids()):
        raise UserError(f"{saved.path}: its classes are not ImageNet's 1,000, which the labels are of; leave it out")
    matches = [VAL_IMAGE.match(name.rpartition("/")[2]) for name in names]
    for name, match in zip(names, matches, strict=True):
        if match is None or not 0 < int(match[1]) <= NUM_IMAGES["val"]:
            raise UserError(
                f"{saved.path}: {printable(name)} is no image of ILSVRC2012 val, whose images the labels are of; leave"
                " the file out"
            )
    return [int(match[1]) for match in matches if match is not None]


def _all_score_files(broken: list[UserError]) -> list[Path]:
    """The score files of data=imagenet in runs/ and evaluations/; why a file cannot be read is appended to `broken`."""
    from tencrop.report.collect import input_folders  # 0.2 s, and only without scores=

    folders = [folder for folder in input_folders([]) if folder.is_dir()]
    paths = sorted(path for folder in folders for path in folder.rglob(f"[!.]*{SUFFIX}"))
    found = []
    for path in filter(is_score_file, paths):  # export.py writes .safetensors files, too
        try:
            if read_ranks(path, "softmax")[1].get("data") == "imagenet":
                found.append(path)
        except UserError as error:
            broken.append(error)
    if not found and not broken:
        raise UserError(
            "labels: runs/ and evaluations/ have no scores of data=imagenet; name score files with scores=RUN"
        )
    return found


def _markdown(pairs: Sequence[tuple[LabelSetErrors, Block]]) -> str:
    return "\n".join(
        f"# {markdown_text(str(one.path))}\n\n{markdown_text(one.about)}\n\n{block.markdown()}" for one, block in pairs
    )


def _csv(pairs: Sequence[tuple[LabelSetErrors, Block]]) -> str:
    rows = [(str(one.path), *row) for one, block in pairs for row in block.rows]
    return csv_table(("scores", *pairs[0][1].head), rows)


def _html(pairs: Sequence[tuple[LabelSetErrors, Block]], source: str) -> str:
    """A page with all tables, which loads nothing, as the report's does."""
    sections = [(str(one.path), one.about, block.html()) for one, block in pairs]
    return f"{render('labels_page.html', title='Errors by label sets', about=source, sections=sections)}\n"


def _block(one: LabelSetErrors, source: str) -> Block:
    parts = {source: one.by_sets, "val's label, same images": one.by_single_label, "val's label": one.of_all_images}
    rows = [
        (name, f"top-{k}", *percent(rate), f"{rate.num_errors:,}", f"{rate.num_images:,}")
        for name, rates in parts.items()
        for k, rate in rates.items()
    ]
    counted = next(iter(one.by_sets.values())).num_images
    note = (
        f"Images counted: {counted:,} of {one.num_images:,}. Images without a label in {source}:"
        f" {one.num_images - counted:,}; they count only in the rows of val's label."
    )
    head = ("labels", "error", "percent", "95% interval", "errors", "images")
    return Block("", head, rows, left=(0, 1), note=note, all_rows=True)
