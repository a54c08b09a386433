"""A package imports only itself and the packages before it, in the order that docs/layout.md states."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"


def stated_order() -> list[str]:
    """The packages of docs/layout.md's list, the earliest first, data.X for a subpackage of data."""
    text = (ROOT / "docs" / "layout.md").read_text()
    return re.findall(r"^\d+\. `([\w.]+)`", text, re.M)


def package_of(module: str) -> str:
    """The entry of the order that a module (dotted, below tencrop) belongs to; a module at the top is its own."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2]) if parts[0] == "data" else parts[0]


def imported(source: str, package: str) -> set[str]:
    """Every module of ours that a source names in an import, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{package}: relative import; name the package"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("tencrop.")}


def backward(source: str, package: str, order: list[str]) -> list[str]:
    """The imports of a source of `package` that point to a later package, or to one that the order lacks."""
    found = []
    for name in imported(source, package):
        target = package_of(name)
        if target.startswith("__"):  # tencrop.__version__
            continue
        if target != package and (target not in order or order.index(target) > order.index(package)):
            found.append(name)
    return found


def sources() -> list[Path]:
    return sorted((SRC / "tencrop").rglob("*.py"))


def test_every_package_is_in_the_stated_order():
    modules = {".".join(path.relative_to(SRC).with_suffix("").parts) for path in sources()}
    modules -= {"tencrop.__init__", "tencrop.data.__init__"}
    assert {package_of(module.removesuffix(".__init__")) for module in modules} == set(stated_order())


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(SRC / "tencrop").as_posix())
def test_imports_point_to_earlier_packages(path):
    module = ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")
    if module in ("tencrop", "tencrop.data"):
        assert not imported(path.read_text(), module), f"{path} imports; it names the package only"
        return
    assert backward(path.read_text(), package_of(module), stated_order()) == []


@pytest.mark.parametrize(
    "source",
    [
        "from tencrop.training.fit import fit",
        "import tencrop.report.page",
        "def later():\n    from tencrop.evaluation import inference",
        "from tencrop.nowhere import anything",
    ],
)
def test_a_planted_backward_import_is_found(source):
    assert backward(source, "data.store", stated_order())


def test_a_forward_import_is_not():
    assert not backward("from tencrop.data.sampling.rng import Index\nimport numpy", "data.store", stated_order())


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(SRC / "tencrop").as_posix())
def test_only_the_command_line_imports_hydra(path):
    is_cli = path.relative_to(SRC / "tencrop").parts[0] == "cli"
    assert is_cli or not re.search(r"^\s*(from|import) hydra\b", path.read_text(), re.M)
