"""Results of an evaluation: write and verify result.json, and print the error table.

Every number in result.json is computed from the scores, or copied from the configuration that they were computed with.
Reading a result imports no torch, so that error tables are printed at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.text import Text

from tencrop.config import Config, UserError
from tencrop.config.schema import MEAN_IMAGES
from tencrop.console import plain_console
from tencrop.data.augmentation.pixel_statistics import IMAGENET
from tencrop.data.sources.imagenet_test_sets import TEST_SETS, classes_within
from tencrop.evaluation.errors import error_rate
from tencrop.evaluation.preprocessing import sizes_text
from tencrop.evaluation.score_files import ranks_within, read_average, read_ranks
from tencrop.files import atomic_write
from tencrop.text_tables import aligned

if TYPE_CHECKING:
    from torch import Tensor

    from tencrop.evaluation.predictions import Scores

FORMAT = "tencrop result 2"
UNSIGNED = "tencrop result 1"  # written by earlier code, without a digest
PROTOCOL_KEYS = ("protocol", "side", "size", "region", "resize", "filter")  # without the average
TOP = (1, 5)  # ImageNet's two error rates


def result_of(scores: Scores, config: Config, /, **origin: Any) -> dict[str, Any]:
    """The content of result.json; errors and the bounds of the 95% Wilson intervals are fractions.

    origin: which file or files the weights came from, and what else is known of them; it overrides other keys. Raises
    UserError if scores are NaN or infinite.
    """
    from tencrop.evaluation.protocols import num_views  # imports torch, which reading a result does without

    average = config.protocol.average
    result: dict[str, Any] = {"format": FORMAT}
    result |= _errors(scores.ranks(average))
    averaged = {"softmax": scores.softmax, "logits": scores.logits}[average]
    result |= _errors_within(scores.metadata.get("data", ""), averaged.numpy(), scores.labels.numpy())
    protocol = dataclasses.asdict(config.protocol)
    return result | {
        "num_classes": scores.softmax.shape[1],
        "split": "val",
        "protocol": protocol.pop("name"),
        "averaging": protocol.pop("average"),
        "views": num_views(config.protocol),
        **protocol,  # side, size, region, filter and resize
        **{key: value for key, value in scores.metadata.items() if key not in ("protocol", "normalization")},
        "experiment": config.name,
        "seed": config.seed,
        **origin,
    }


def result_name(result: dict[str, Any]) -> str:
    """The name of an evaluation in its folder and in the tracker: its score file's stem, "-logits" if averaged so."""
    return Path(result["scores"]).stem + ("-logits" if result["averaging"] == "logits" else "")


def _errors(ranks: Tensor | np.ndarray) -> dict[str, Any]:
    """The keys of a result that are computed from the labels' ranks, int [N]."""
    errors: dict[str, Any] = {}
    for k in TOP:
        rate = error_rate(ranks, k)
        errors |= {f"top{k}_error": rate.fraction, f"top{k}_interval": list(rate.interval)}
    # With the number of images anyone can compute the interval again.
    return errors | {"num_images": len(ranks)}


def _errors_within(data: str, scores: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """For ImageNet-A and -R, the errors within their 200 classes, as `within_classes`; empty for other data."""
    if (classes := classes_within(data)) is None:
        return {}
    return {"within_classes": {"num_classes": len(classes), **_errors(ranks_within(scores, labels, classes))}}


def by_classes(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A result once for each set of classes among which the network chooses, with the key `classes` in words.

    ImageNet-A and -R: first their 200 classes, as their authors count, then all 1,000. Other data: the result alone.
    """
    if (within := result.get("within_classes")) is None:
        return [dict(result)]
    return [
        {**result, **within, "classes": f"among its {within['num_classes']} classes"},
        {**result, "classes": f"among all {result['num_classes']:,} classes"},
    ]


def save_result(path: Path, result: dict[str, Any]) -> None:
    """Write result.json atomically, with its digest as `sha256`; an equal file keeps its modification time."""
    # The digest is computed without the key `sha256` itself, which load_result removes first.
    content = (json.dumps({**result, "sha256": _digest(result)}, indent=1) + "\n").encode()
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content)


def load_result(path: Path) -> dict[str, Any]:
    """Read and verify a result.json.

    Its errors are counted again from the score file beside it. If that is gone, or now belongs to another evaluation,
    only the digest protects the errors, and a result of earlier code without a digest is refused. Raises UserError if
    the file is missing, broken, damaged, something else, or does not match its scores.
    """
    try:
        result = json.loads(path.read_text() if path.is_file() else "null")  # reading a named pipe would block
        found, digest = result["format"], result.pop("sha256", None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: is no result of evaluate.py") from error
    if found not in (FORMAT, UNSIGNED):
        raise UserError(f"{path}: is of format {found} and not {FORMAT}; run evaluate.py again")
    # Format 2 must have a digest: deleting it must not turn a changed file into one of format 1.
    is_signed = found == FORMAT or digest is not None
    if is_signed and digest != _digest(result):
        raise UserError(f"{path}: is damaged: it is not what was written (SHA-256); run evaluate.py again")
    counted = _recounted_errors(path, result)
    if counted is None and not is_signed:
        raise UserError(f"{path}: has no digest, and no scores beside it to count from; run evaluate.py again")
    if counted is not None and any(result.get(key) != value for key, value in counted.items()):
        raise UserError(f"{path}: its errors are not those of {result['scores']} beside it; run evaluate.py again")
    return result


def _recounted_errors(path: Path, result: dict[str, Any]) -> dict[str, Any] | None:
    """The errors counted again from a result's score file; None if the file is gone or of another evaluation."""
    try:
        scores = path.with_name(result["scores"])
        if not scores.is_file():
            return None
        ranks, metadata = read_ranks(scores, result["averaging"])
        # The file's name contains only the protocol: evaluating other weights in the same folder overwrites it.
        same = ("weights_sha256", "source_fingerprint", *(["code_sha256"] if "code_sha256" in result else []))
        if any(metadata.get(key) != result[key] for key in same):
            return None
        errors, data = _errors(ranks), metadata.get("data", "")
        if classes_within(data) is not None:
            errors |= _errors_within(data, *read_average(scores, result["averaging"]))
        return errors
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is no result of this version ({error!r}); run evaluate.py again") from error


def _digest(result: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


def print_results(results: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """Print the error table of some results, in percent with 95% intervals."""
    rows = [("weights", "protocol", "top-1 %", "95%", "top-5 %", "95%", "n")]
    for result in (part for whole in results for part in by_classes(whole)):
        cells = []
        for k in TOP:
            low, high = result[f"top{k}_interval"]
            cells += [f"{100 * result[f'top{k}_error']:.2f}", f"{100 * low:.2f}–{100 * high:.2f}"]
        name = result["label"] + (" (EMA)" if result["weights"] == "ema" else "")
        # The same weights are usually evaluated on val too, and the two figures must not be mistaken for each other.
        name += f" on {result['data']}" if result.get("data") in TEST_SETS else ""
        rows.append((name, protocol_label(result), *cells, f"{result['num_images']:,}"))
    console = console or plain_console()
    for number, line in enumerate(aligned(rows, left=[0, 1])):
        # soft_wrap: rich would otherwise break a long line at 80 columns in a log, and `grep` would find half a row
        console.print(Text(line, "" if number else "dim"), soft_wrap=True)


def is_joint(result: Mapping[str, Any]) -> bool:
    """Whether a result, or a member's facts beside those of its ensemble, is of several members' average."""
    # A single checkpoint is a path, an ensemble a list of them. Ensembles of earlier code have no "members".
    return "members" in result or isinstance(result.get("checkpoint"), list)


def protocol_label(result: dict[str, Any]) -> str:
    """The protocol of a result in words, such as "ten_crop 224 of 256 px, softmax"."""
    members = [protocol_label(member | {"averaging": result["averaging"]}) for member in result.get("members", ())]
    classes = f", {result['classes']}" if "classes" in result else ""
    # An ensemble averages its members' scores, even if each has one view.
    average = f", {result['averaging']}" if result["views"] > 1 or is_joint(result) else ""
    if len(set(members)) > 1:  # an ensemble of several protocols
        return " + ".join(dict.fromkeys(members)) + (average if result["views"] == 1 else "") + classes
    # Results of earlier code have no "resize".
    sizes = sizes_text(result["size"], result["side"], result.get("resize", "shorter_side"))
    label = f"{result['protocol']} {sizes}"
    label += ", central square" if result["region"] == "square" else ""
    return label + average + (f", {result['subset']}" if "subset" in result else "") + classes


def differences_from_training(result: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Settings of a result that differ from the training of its weights, such as "precision fp32", "filter bicubic".

    config: the training's, as in config.yaml. Settings that earlier code did not record are taken to be equal.
    """
    trained = {"filter": config["augmentation"].get("filter"), "precision": config["training"].get("precision")}
    for key, given in (config.get("normalization") or {}).items():
        trained[key] = list(IMAGENET[key]) if given == "imagenet" else given
    if trained.get("mean") in MEAN_IMAGES and "mean_image_sha256" in result:
        del trained["mean"]  # the result's own "mean" is the mean color of that image
    if result.get("data") in TEST_SETS:  # only if the user put it into the folder of the run
        trained["data"] = config["data"]["name"]
    known = {key: value for key, value in trained.items() if value not in (None, "dataset") and key in result}
    # "dataset" does not say the numbers: evaluate.py has compared them with those in the checkpoint
    changed = {key for key, value in known.items() if result[key] != value} | {*result.get("changed_normalization", ())}
    differences = [f"{key} {result[key]}" for key in ("filter", "precision", "mean", "std", "data") if key in changed]
    loader = result.get("loader", "beton")  # recorded only for ffcv, whose decoder gives other pixels
    is_other = (loader == "ffcv") != (config["data"].get("loader") == "ffcv")
    return [*differences, f"loader {loader}"] if is_other else differences
