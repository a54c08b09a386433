"""What an evaluation found: result.json, which the report reads, and the table on the terminal.

Called by evaluate.py. Nothing here is typed by hand: all comes from scores, and from the configuration behind them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tencrop.config import Config, UserError
from tencrop.console import plain_console
from tencrop.data.manifest import write_whole
from tencrop.evaluation.errors import error_rate
from tencrop.evaluation.predictions import Scores
from tencrop.evaluation.protocols import num_views

FORMAT = "tencrop result 1"


def result_of(scores: Scores, config: Config, /, **origin: Any) -> dict[str, Any]:
    """The content of result.json; errors and bounds of the 95% Wilson intervals are fractions.

    `origin` says which file or files the weights came from, and what more is known of them. Raises UserError where
    scores are NaN or infinite.
    """
    average = config.protocol.average
    result: dict[str, Any] = {"format": FORMAT}
    for k in (1, 5):
        rate = error_rate(scores.ranks(average), k)
        result |= {f"top{k}_error": rate.fraction, f"top{k}_interval": list(rate.interval)}
    protocol = dataclasses.asdict(config.protocol)
    return result | {
        "num_images": len(scores.index),
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


def save_result(path: Path, result: dict[str, Any]) -> None:
    """Write result.json whole or not at all; a file that says the same stays untouched, maybe in a read-only folder."""
    content = (json.dumps(result, indent=1) + "\n").encode()
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)


def load_result(path: Path) -> dict[str, Any]:
    """A result.json; UserError where it is missing, broken or something else."""
    try:
        result = json.loads(path.read_text())
        found = result["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is no result of evaluate.py") from error
    if found != FORMAT:
        raise UserError(f"{path}: is of format {found} and not {FORMAT}; run evaluate.py again")
    return result


def print_results(results: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """The error table of some results, in percent."""
    table = Table("weights", "protocol", title="error in percent", title_justify="left")
    for column in ("top-1", "95%", "top-5", "95%", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        cells = []
        for k in (1, 5):
            low, high = result[f"top{k}_interval"]
            cells += [f"{100 * result[f'top{k}_error']:.2f}", f"{100 * low:.2f}–{100 * high:.2f}"]
        name = result["label"] + (" (EMA)" if result["weights"] == "ema" else "")
        table.add_row(name, protocol_label(result), *cells, f"{result['num_images']:,}")
    (console or plain_console()).print(table)


def protocol_label(result: dict[str, Any]) -> str:
    """The protocol of a result in words, such as "ten_crop of 256 px, softmax"."""
    sides = result["side"] if isinstance(result["side"], list) else [result["side"]]
    side = "whole size" if result["side"] is None else f"{', '.join(str(side) for side in sides)} px"
    label = f"{result['protocol']} {result['size']} of {side}"
    label += ", central square" if result["region"] == "square" else ""
    return label + (f", {result['averaging']}" if result["views"] > 1 else "")
