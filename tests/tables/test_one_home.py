"""A printed error is in conf/errors and nowhere else: not in a comment, a docstring or a value of a configuration."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tencrop.cli.choices import CONF
from tencrop.tables.reading import read_tables, table_names
from tencrop.tables.schema import parse_printed

SOURCE = Path(__file__).parents[2] / "src"
WORDS = re.compile(r"\berrors?\b|\baccurac|\btop-?_?[15]", re.IGNORECASE)
OURS = re.compile(r"\b[Ss]eeds? \d")  # a measurement of ours, which may equal a printed error by chance
NUMBER = re.compile(r"(?<![\w.])(?<!section )\d{1,2}\.\d{1,4}(?![\w.]*\w)")


@pytest.fixture(scope="module")
def printed() -> set[str]:
    """Every number printed with decimals, as printed and as 100 minus it, with as many decimals."""
    found = set()
    for table in read_tables():
        for row in table.rows:
            for number in row.printed.values():
                digits = "" if number is None else number.partition("±")[0].lstrip("<>~+-")
                if "." not in digits or row.delta_of is not None:
                    continue
                decimals = len(digits.partition(".")[2])
                found |= {digits, f"{100 - parse_printed(digits).value:.{decimals}f}"}
    return found


def printed_errors(text: str, printed: set[str]) -> list[str]:
    """Sentences of a text that have a printed number and a word for what it measures, and do not name our seeds."""
    # "(3.3)" is a section
    sentences = re.split(r"(?<=[.;])\s+(?=[A-Z])", re.sub(r"\(\d\.\d\)", "", " ".join(text.split())))
    found = [one for one in sentences if WORDS.search(one) and not OURS.search(one)]
    return [one for one in found if any(number in printed for number in NUMBER.findall(one))]


def texts_of_yaml(path: Path) -> Iterator[str]:
    """Blocks of comments, and everything else by line."""
    block: list[str] = []
    for line in path.read_text().splitlines():
        before, sign, comment = line.partition("#")
        if sign and not before.strip():
            block.append(comment)
            continue
        yield " ".join(block)
        yield line
        block = []
    yield " ".join(block)


def texts_of_python(path: Path) -> Iterator[str]:
    """Docstrings, and blocks of comments on consecutive lines."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""
    block, last = "", -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last + 1:
                yield block
                block = ""
            block, last = f"{block} {token.string.lstrip('#')}", token.start[0]
    yield block


def test_the_search_finds_a_printed_error(printed: set[str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "# VGG D. Published error, dense,\n# ILSVRC-2012 val: 27.0, 8.8 (table 3).\nname: a\n"
    )
    (tmp_path / "b.yaml").write_text("name: b\nclaim: {top1_error: 24.01}\n")
    (tmp_path / "c.py").write_text(
        '"""ResNet-50.\n\nIts accuracy is\n75.99 percent."""\n\n# top-5 of the\n# paper: 7.02\n'
    )
    assert [len(found(tmp_path / name, printed)) for name in ("a.yaml", "b.yaml", "c.py")] == [1, 1, 2]
    (tmp_path / "d.yaml").write_text(
        "# 27.0 MB, and 8.8 s\ndropout: 0.5 # error of 123.4, as section 3.3 and (3.4) say\n"
    )
    assert found(tmp_path / "d.yaml", printed) == []


def found(path: Path, printed: set[str]) -> list[str]:
    texts = texts_of_python(path) if path.suffix == ".py" else texts_of_yaml(path)
    return [sentence for text in texts for sentence in printed_errors(text, printed)]


def test_no_printed_error_is_outside_its_table(printed: set[str]) -> None:
    files = [path for path in CONF.rglob("*.yaml") if path.parent.name != "errors"] + [*SOURCE.rglob("*.py")]
    assert len(files) > 300
    elsewhere = {str(path): sentences for path in files if (sentences := found(path, printed))}
    assert elsewhere == {}


def test_a_model_file_points_to_tables_that_have_its_network() -> None:
    models = {table.name: {row.model for row in table.rows} for table in read_tables()}
    pointers = 0
    for path in sorted((CONF / "model").glob("*.yaml")):
        comment = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
        _, _, named = comment.partition("Errors: conf/errors/")
        for name in re.findall(r"(\w+)\.yaml", named):
            pointers += 1
            assert name in table_names(), path
            variants = name.startswith("alexnet") or name == "squeezenet_table3"  # rows with changed arguments
            assert path.stem in models[name] or variants, (path.stem, name)
    assert pointers > 100
