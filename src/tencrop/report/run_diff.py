"""report.py diff=[RUN_A,RUN_B]: what differs between two runs, from configuration to hardware."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tencrop.config import Config, UserError, learning_keys, validate
from tencrop.config.documents import literal
from tencrop.config.run_config import CONFIG, REMEDY, is_run_folder, read_config
from tencrop.config.writable import check_writable
from tencrop.files import atomic_write
from tencrop.printable import markdown_text, printable
from tencrop.records.manifest import RunData
from tencrop.records.provenance import EXACT, sessions_of
from tencrop.records.run_folder import read_run_manifest
from tencrop.report.blocks import Block, print_paragraphs

MARKDOWN = "difference.md"
NONE = "–"
Facts = dict[str, str]


@dataclass(frozen=True)
class RunRecord:
    """What may differ between two runs, as text."""

    settings: Facts
    learned: frozenset[str]  # the settings that affect training
    parts: dict[str, Facts]  # code, packages, data, hardware


def report_difference(inputs: Sequence[str], *, output: Path) -> int:
    """Print the differences of two run folders and write them to difference.md in `output`. Returns the exit code.

    Raises UserError unless there are two run folders that this version reads.
    """
    if len(inputs) != 2:
        raise UserError(f"diff=[{','.join(inputs)}]: takes two run folders, as diff=[RUN_A,RUN_B]")
    check_writable(output / MARKDOWN, remedy="make room, or name another folder with output=DIR")
    # Both are read before anything is printed, so that a broken second folder gives an error and no half output.
    blocks = difference(*(read_record(Path(one)) for one in inputs))
    head = [f"A  {inputs[0]}", f"B  {inputs[1]}"]
    output.mkdir(parents=True, exist_ok=True)
    title = "# What differs\n\n" + "".join(f"- {markdown_text(line)}\n" for line in head)
    text = "\n".join([title, *(block.markdown() for block in blocks)])
    atomic_write(output / MARKDOWN, printable(text).encode())
    texts = [printable("\n".join(head)), *(block.terminal() for block in blocks), str(output / MARKDOWN)]
    print_paragraphs(texts)
    return 0


def difference(a: RunRecord, b: RunRecord) -> list[Block]:
    """One table for each part: settings that affect training first, then other settings, code, packages, ..."""
    learned = a.learned | b.learned  # a setting of an operation that one run has switched off affects only the other
    # Split here and not in read_record, because only the pair tells which settings affect training.
    first, second = ({key: value for key, value in one.settings.items() if key in learned} for one in (a, b))
    third, fourth = ({key: value for key, value in one.settings.items() if key not in learned} for one in (a, b))
    settings = [_block("Settings that affect training", first, second), _block("Other settings", third, fourth)]
    return settings + [_block(name, a.parts[name], b.parts[name]) for name in a.parts]


def read_record(folder: Path) -> RunRecord:
    """The record of a run folder. Raises UserError if it is none, or not one that this version reads."""
    if not is_run_folder(folder):
        raise UserError(f"diff={folder}: is no run folder (config.yaml and manifest.json; train.py makes them)")
    config, manifest = read_config(folder), read_run_manifest(folder)
    try:
        # With today's schema: keys that are newer than the run then have their defaults, and do not appear as
        # differences.
        validated = validate(OmegaConf.create(literal(config)), Config)
    except UserError as error:
        problem = str(error)[:300]  # quotes the value, which may be of any length
        raise UserError(f"{folder / 'config.yaml'}: not {CONFIG} ({problem}); {REMEDY}") from error
    sessions = sessions_of(manifest)
    parts = {
        "Code": _over_sessions([session["code"] for session in sessions]) | {"tencrop": manifest["tencrop"]},
        "Packages": _over_sessions([_exact_first(session["packages"]) for session in sessions]),
        "Data": _data(manifest["data"]),
        # Sessions of one run may be on different machines, and a difference in one of them may explain other bits.
        "Hardware": _over_sessions([{**session["hardware"], "layout": session.get("layout")} for session in sessions]),
    }
    return RunRecord(
        flat_settings(dataclasses.asdict(validated)), frozenset(flat_settings(learning_keys(validated))), parts
    )


def _block(part: str, first: Facts, second: Facts) -> Block:
    # In the order of the record and not sorted: related settings stay together.
    names = [name for name in dict.fromkeys([*first, *second]) if first.get(name) != second.get(name)]
    rows = [(name, first.get(name, NONE), second.get(name, NONE)) for name in names]
    return Block(part if rows else f"{part}: no difference", ("", "A", "B"), rows, left=range(3), all_rows=True)


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> Facts:
    """Dotted keys and their values as text, as typed on the command line."""
    found: Facts = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat_settings(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = _text(value)
    return found


def _over_sessions(sessions: Sequence[Mapping[str, object]]) -> Facts:
    """Each fact over the sessions of a run: "2.14.0, then 2.15.0" if it was resumed with another version."""
    keys = dict.fromkeys(key for session in sessions for key in session)
    # A key that a session lacks is null in it: dropped keys would shift the "then".
    values = {key: [_text(session.get(key)) for session in sessions] for key in keys}
    return {key: ", then ".join(value for value, _ in groupby(found)) for key, found in values.items()}


def _exact_first(packages: dict[str, str]) -> dict[str, str]:
    """The packages that may change the last bits of the weights first, the others by name."""
    return {name: packages[name] for name in sorted(packages, key=lambda name: (name not in EXACT, name))}


def _data(data: RunData) -> Facts:
    """Name, classes, and counts and fingerprints of both splits; not the folder, which may be anywhere."""
    splits = {f"{split} {key}": _text(value) for split, facts in data["splits"].items() for key, value in facts.items()}
    return {"name": data["name"], "classes": f"{len(data['classes']):,}", **splits}


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = f"[{', '.join(map(_text, value))}]" if isinstance(value, list) else str(value)
    # 12 digits tell two digests apart and fit into a terminal's line.
    is_digest = len(text) == 64 and not set(text) - set("0123456789abcdef")
    return text[:12] if is_digest else text
