"""What an evaluation found: result.json, which the report reads, and the table on the terminal.

Called by evaluate.py. Nothing here is typed by hand: all comes from scores, and from the configuration behind them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from torch import Tensor

from tencrop.config import Config, UserError
from tencrop.console import plain_console
from tencrop.data.augmentation.color import IMAGENET
from tencrop.evaluation.errors import error_rate
from tencrop.evaluation.predictions import Scores, load_ranks
from tencrop.evaluation.protocols import num_views
from tencrop.files import atomic_write
from tencrop.text_tables import aligned

FORMAT = "tencrop result 2"
UNSIGNED = "tencrop result 1"  # as earlier code wrote it, without a digest
TOP = (1, 5)


def result_of(scores: Scores, config: Config, /, **origin: Any) -> dict[str, Any]:
    """The content of result.json; errors and bounds of the 95% Wilson intervals are fractions.

    `origin` says which file or files the weights came from, and what more is known of them. Raises UserError where
    scores are NaN or infinite.
    """
    average = config.protocol.average
    result: dict[str, Any] = {"format": FORMAT}
    result |= _errors(scores.ranks(average))
    protocol = dataclasses.asdict(config.protocol)
    return result | {
        "num_classes": scores.softmax.shape[1],
        "split": "val",
        "protocol": protocol.pop("name"),
        "averaging": protocol.pop("average"),
        "views": num_views(config.protocol),
        **protocol,
        **{key: value for key, value in scores.metadata.items() if key not in ("protocol", "normalization")},
        "experiment": config.name,
        "seed": config.seed,
        "claim": None if config.claim is None else dataclasses.asdict(config.claim),
        **origin,
    }


def result_name(result: dict[str, Any]) -> str:
    """Under which an evaluation is known in its folder and to the tracker: its score file's, and its average's."""
    return Path(result["scores"]).stem + ("-logits" if result["averaging"] == "logits" else "")


def _errors(ranks: Tensor) -> dict[str, Any]:
    """The part of a result that is counted from the labels' ranks, int [N]."""
    errors: dict[str, Any] = {}
    for k in TOP:
        rate = error_rate(ranks, k)
        errors |= {f"top{k}_error": rate.fraction, f"top{k}_interval": list(rate.interval)}
    return errors | {"num_images": len(ranks)}


def save_result(path: Path, result: dict[str, Any]) -> None:
    """Write result.json, with its digest as `sha256`, whole or not at all; where it says the same, not at all."""
    content = (json.dumps({**result, "sha256": _digest(result)}, indent=1) + "\n").encode()
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content)


def load_result(path: Path) -> dict[str, Any]:
    """A result.json; UserError where it is missing, broken, damaged, something else, or not what its scores give.

    The score file may be gone, or another evaluation may have written it anew by now; then the digest alone vouches
    for the errors, and a result of earlier code, which has none, is refused.
    """
    try:
        result = json.loads(path.read_text() if path.is_file() else "null")  # a pipe would be waited for
        found, digest = result["format"], result.pop("sha256", None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: is no result of evaluate.py") from error
    if found not in (FORMAT, UNSIGNED):
        raise UserError(f"{path}: is of format {found} and not {FORMAT}; run evaluate.py again")
    is_signed = found == FORMAT or digest is not None
    if is_signed and digest != _digest(result):
        raise UserError(f"{path}: is damaged: it is not what was written (SHA-256); run evaluate.py again")
    counted = _counted_again(path, result)
    if counted is None and not is_signed:
        raise UserError(f"{path}: has no digest, and no scores beside it to count from; run evaluate.py again")
    if counted is not None and any(result.get(key) != value for key, value in counted.items()):
        raise UserError(f"{path}: its errors are not those of {result['scores']} beside it; run evaluate.py again")
    return result


def _counted_again(path: Path, result: dict[str, Any]) -> dict[str, Any] | None:
    """The errors that the score file of a result gives; None where there is none of this evaluation."""
    try:
        scores = path.with_name(result["scores"])
        if not scores.is_file():
            return None
        ranks, metadata = load_ranks(scores, result["averaging"])
        same = ("weights_sha256", "source_fingerprint", *(["code_sha256"] if "code_sha256" in result else []))
        return _errors(ranks) if all(metadata.get(key) == result[key] for key in same) else None
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is no result of this version ({error!r}); run evaluate.py again") from error


def _digest(result: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


def print_results(results: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """The error table of some results, in percent."""
    rows = [("weights", "protocol", "top-1 %", "95%", "top-5 %", "95%", "n")]
    for result in results:
        cells = []
        for k in TOP:
            low, high = result[f"top{k}_interval"]
            cells += [f"{100 * result[f'top{k}_error']:.2f}", f"{100 * low:.2f}–{100 * high:.2f}"]
        name = result["label"] + (" (EMA)" if result["weights"] == "ema" else "")
        rows.append((name, protocol_label(result), *cells, f"{result['num_images']:,}"))
    console = console or plain_console()
    for number, line in enumerate(aligned(rows, left=[0, 1])):
        # soft_wrap: rich would otherwise break a long line at 80 columns in a log, and `grep` would find half a row
        console.print(Text(line, "" if number else "dim"), soft_wrap=True)


def protocol_label(result: dict[str, Any]) -> str:
    """The protocol of a result in words, such as "ten_crop of 256 px, softmax"."""
    sides = result["side"] if isinstance(result["side"], list) else [result["side"]]
    side = "whole size" if result["side"] is None else f"{', '.join(str(side) for side in sides)} px"
    label = f"{result['protocol']} {result['size']} of {side}"
    label += ", central square" if result["region"] == "square" else ""
    return label + (f", {result['averaging']}" if result["views"] > 1 else "")


def measured_otherwise(result: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """In what a result was measured otherwise than its weights were trained: "precision fp32", "filter bicubic".

    config: the training's, as config.yaml has it. What results and runs of earlier code do not say, and the mean and
    std of data that are not here, are taken to be the same.
    """
    trained = {"filter": config["augmentation"].get("filter"), "precision": config["training"].get("precision")}
    for key, given in (config.get("normalization") or {}).items():
        trained[key] = list(IMAGENET[key]) if given == "imagenet" else given
    known = {key: value for key, value in trained.items() if value not in (None, "dataset") and key in result}
    differences = [f"{key} {result[key]}" for key, value in known.items() if result[key] != value]
    loader = result.get("loader", "beton")  # only ffcv's is recorded: its pixels are its own
    is_other = (loader == "ffcv") != (config["data"].get("loader") == "ffcv")
    return [*differences, f"loader {loader}"] if is_other else differences
