"""Small files of run folders and prepared folders, damaged or made up: a reader returns a value or raises UserError of
one line, and what it returns of a file with digests is what was written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tencrop.cli.choices import CONF
from tencrop.cli.run_overrides import config_of_run
from tencrop.config import UserError
from tencrop.config.run_config import read_config
from tencrop.data.store.manifest import read_manifest
from tencrop.records.probes import SavedProbe, read_probe, save_probe
from tencrop.records.run_folder import finish, read_run_manifest, run_folder
from tencrop.records.tracker import tracked_id
from tencrop.training.metric_rows import NO_ROWS, append_row, keep_rows, read_rows
from tencrop.visualization.record import Record, load_record, save_record

Reader = Callable[[Path], Any]
TRAPS = [
    b"9" * 5000, b"-1e999", b"NaN", b"Infinity", b"[" * 3000, b'{"a":' * 3000, b"\xff\xfe", b"\0", b"null", b"true",
    b'"', b'"\\ud800"', b'"\\u0000"', b"&a [1, 2]", b"*a", b"<<: *a", b"!!python/object/apply:os.system [false]",
    b"? [a]", b"${oc.env:HOME}", b"${", b"???", b"2026-02-30", b"0b_", b"{}", b"\n", b"- ", b": ", b"#", b"---\n",
]  # fmt: skip
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes, *, dump: Callable[[Any], str] = json.dumps) -> bytes:
    """`content` with flipped bits, cut, with a part or a key gone, a value of another type, or something inserted."""
    place = draw(st.integers(0, len(content) - 1))
    match draw(st.sampled_from(["flip", "cut", "remove", "insert", "swap", "delete"])):
        case "flip":
            changed = bytearray(content)
            for place in draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
                changed[place] ^= 1 << draw(st.integers(0, 7))
            return bytes(changed)
        case "cut":
            return content[:place]
        case "remove":
            return content[:place] + content[place + draw(st.integers(1, 60)) :]
        case "insert":
            return content[:place] + draw(st.sampled_from(TRAPS)) + content[place:]
        case kind:
            lines = content.splitlines(keepends=True) if dump is json.dumps and content[:2] != b"{\n" else [content]
            number = draw(st.integers(0, len(lines) - 1))
            value = yaml.safe_load(lines[number]) if dump is not json.dumps else json.loads(lines[number])
            parent = draw(st.sampled_from(list(_mappings(value))))
            key = draw(st.sampled_from(sorted(parent)))
            if kind == "delete":
                del parent[key]
            else:
                parent[key] = draw(PLAIN)
            lines[number] = (dump(value) + "\n").encode()
            return b"".join(lines)


def _mappings(value: Any) -> Any:
    if isinstance(value, dict):
        if value:
            yield value
        for part in value.values():
            yield from _mappings(part)
    elif isinstance(value, list):
        for part in value[:3]:
            yield from _mappings(part)


def read_all(read: Reader, path: Path, contents: st.SearchStrategy[bytes], cases: int, as_written: Callable) -> None:
    """Reads `cases` contents; `as_written(value, content)` judges what comes back."""

    @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(contents)
    def read_one(content: bytes) -> None:
        path.write_bytes(content)
        try:
            value = read(path)
        except UserError as error:
            assert str(error).count("\n") == 0 and len(str(error)) < 1000 and str(path) in str(error)
        else:
            assert as_written(value, content)

    read_one()


@pytest.fixture(params=[200, pytest.param(1000, marks=pytest.mark.long)])
def cases(request) -> int:
    return request.param


@pytest.fixture
def run(composed, prepared_digits, tmp_path) -> Path:
    """A complete run of five rows."""
    config = composed("experiment=lenet5_digits", "tracker=none", f"runs={tmp_path}", f"data.root={prepared_digits}")
    folder, digest = run_folder(config, read_manifest(prepared_digits)), NO_ROWS
    row = {"split": "train", "top1_error": 0.5, "num_images": 32, "lr": 0.1, "labels": "own", "data_digest": "ab"}
    with (folder / "metrics.jsonl").open("a") as file:
        for step in range(1, 6):
            digest = append_row(file, {"step": step, "epoch": step / 2, "loss": 1 / step} | row, digest)
    finish(folder, status="complete", weights_sha256="ab" * 32)
    return folder


def made_up(contents: bytes) -> st.SearchStrategy[bytes]:
    del contents
    return st.one_of(PLAIN.map(lambda value: json.dumps(value).encode()), st.binary(max_size=60))


def test_metrics(run, cases):
    path = run / "metrics.jsonl"
    written = read_rows(path)
    content = path.read_bytes()
    read_all(read_rows, path, damaged(content), cases, lambda rows, _: rows == written[: len(rows)])
    read_all(read_rows, path, made_up(content), cases // 4, lambda rows, _: isinstance(rows, list))
    expected = read_run_manifest(run)["result"]["metrics_digest"]
    whole = lambda rows, content: rows == written  # noqa: E731
    read_all(lambda path: read_rows(path, expected=expected), path, damaged(content), cases // 4, whole)
    read_all(lambda path: keep_rows(path, 3), path, damaged(content), cases // 4, lambda kept, _: kept[0] == 3)


def test_measurement_of_a_plan(tmp_path, cases):
    path = save_probe(tmp_path, SavedProbe("0123abcd", "a GPU", 8, 0.25, 450_000))
    content = path.read_bytes()
    typed = lambda probe, _: probe.device_hours >= 0 and isinstance(probe.recipe + probe.device, str)  # noqa: E731
    read_all(read_probe, path, damaged(content), cases, typed)
    read_all(read_probe, path, made_up(content), cases // 4, typed)


def test_manifest_of_a_run(run, cases):
    path = run / "manifest.json"
    content = path.read_bytes()
    typed = lambda value, _: isinstance(value["result"]["status"], str) and value["sessions"][0]["code"]  # noqa: E731
    read_all(lambda path: read_run_manifest(path.parent), path, damaged(content), cases, typed)
    read_all(lambda path: read_run_manifest(path.parent), path, made_up(content), cases // 4, typed)


def test_manifest_of_data(prepared_digits, tmp_path, cases):
    path, content = tmp_path / "manifest.json", (prepared_digits / "manifest.json").read_bytes()
    written = {key: value for key, value in json.loads(content).items() if key != "sha256"}
    same = lambda value, _: written.items() <= value.items()  # noqa: E731
    read_all(lambda path: read_manifest(path.parent), path, damaged(content), cases, same)
    read_all(lambda path: read_manifest(path.parent), path, made_up(content), cases // 4, same)


def test_id_of_a_tracked_run(tmp_path, cases):
    path = tmp_path / "tracking" / "run.json"
    path.parent.mkdir()
    is_id = lambda value, _: isinstance(value, str) and value.isascii() and value.isalnum()  # noqa: E731
    contents = st.one_of(damaged(b'{"id": "0123456789ab"}\n'), made_up(b""))
    read_all(lambda path: tracked_id(path.parents[1]), path, contents, cases, is_id)


def test_record_of_a_figure(tmp_path, cases):
    path = tmp_path / "occlusion.json"
    save_record(path, Record("Occlusion", "What it sees", "lenet5", "ab" * 32, "python -m tencrop.visualization"))
    contents = st.one_of(damaged(path.read_bytes()), made_up(b""))
    read_all(load_record, path, contents, cases, lambda record, _: isinstance(record.title + record.caption, str))


@pytest.mark.parametrize("cases", [60, pytest.param(1000, marks=pytest.mark.long)])
def test_configuration_of_a_run(run, cases):
    path = run / "config.yaml"
    content = path.read_bytes()
    contents = damaged(content, dump=yaml.safe_dump) | made_up(content)
    read_all(lambda path: read_config(path.parent), path, contents, cases, lambda value, _: value["data"]["name"])
    typed = lambda config, _: dataclasses.asdict(config)  # noqa: E731
    read_all(lambda path: config_of_run(path.parent, [], conf=CONF), path, contents, cases, typed)
