"""The hash of the learning code covers what decides the weights, and nothing that only reports."""

import ast
import importlib.util
import inspect
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from tencrop.config.code import LEARNING, NOT_LEARNING, PACKAGE, SCORING, code_sha256, source_files
from typed import present

STAGES = ("config", "data", "models", "training", "distributed")


def imported_files(path: Path) -> set[Path]:
    """The files of ours that a file names in an import, inside functions too; of a name that a package hands on, the
    file that defines it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {file_of(alias.name) for alias in node.names if alias.name.startswith("tencrop.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tencrop"):
            found |= {defining_file(node.module, alias.name) for alias in node.names}
    return found


def file_of(module: str) -> Path:
    return Path(present(spec_of(module).origin)).relative_to(PACKAGE)


def spec_of(module: str) -> ModuleSpec:
    return present(importlib.util.find_spec(module))


def defining_file(module: str, name: str) -> Path:
    if spec_of(module).submodule_search_locations is None:
        return file_of(module)
    value = getattr(importlib.import_module(module), name, None)
    if value is None or inspect.ismodule(value):
        return file_of(f"{module}.{name}")
    return file_of(getattr(value, "__module__", module))


def left_out(learning: tuple[str, ...], not_learning: tuple[str, ...]) -> set[Path]:
    """Files of the stages, and files that the learning code imports, that neither list names."""
    ours = source_files(PACKAGE, learning)
    wanted = {file for path in ours if path.suffix == ".py" for file in imported_files(PACKAGE / path)}
    wanted -= {Path("__init__.py")}  # the version
    return (wanted | set(source_files(PACKAGE, STAGES))) - set(ours) - set(source_files(PACKAGE, not_learning))


def test_every_file_of_the_stages_is_in_one_of_the_two_lists():
    assert left_out(LEARNING, NOT_LEARNING) == set()
    both = set(source_files(PACKAGE, LEARNING)) & set(source_files(PACKAGE, NOT_LEARNING))
    assert both == set()


@pytest.mark.parametrize("path", [*LEARNING, *NOT_LEARNING])
def test_a_path_that_is_left_out_is_found(path):
    assert (PACKAGE / path).exists()
    rest = [tuple(other for other in paths if other != path) for paths in (LEARNING, NOT_LEARNING)]
    assert left_out(*rest), "neither imported nor in a stage: the list does not need it"


def test_the_hash_covers_c_files_and_follows_their_content(tmp_path):
    for name in ("models/a.py", "models/b.c", "models/.#a.py", "models/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    assert source_files(tmp_path, ["models"]) == [Path("models/a.py"), Path("models/b.c")]
    before = code_sha256(tmp_path, ["models"])
    (tmp_path / "models/.#a.py").write_text("2")
    assert code_sha256(tmp_path, ["models"]) == before
    (tmp_path / "models/b.c").write_text("2")
    assert code_sha256(tmp_path, ["models"]) != before


def test_the_decoder_decides_scores_too():
    assert Path("data/native/_decode.c") in source_files(PACKAGE, SCORING)
