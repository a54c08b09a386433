"""Fixtures for the tests of figures: reading the text of SVG files."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def texts_of() -> Callable[[Path], list[str]]:
    """texts_of(path): list of the text elements of an SVG file."""

    def read(path: Path) -> list[str]:
        root = ET.parse(path).getroot()
        assert root.tag == f"{SVG}svg"
        return ["".join(element.itertext()).strip() for element in root.iter(f"{SVG}text")]

    return read
