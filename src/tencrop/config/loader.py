"""What `data.loader` means in older configurations, and whether the loader that is named is installed.

Until config_format 2, `ffcv` was the name of our own loader, which reads ffcv's file format: now `beton`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from tencrop.config.schema import Data, UserError
from tencrop.config.tracker import without_removed_tracker

# Of a run's config.yaml. 1, which no file names: `loader: ffcv` is our own loader. 2: it is stock ffcv's.
CONFIG_FORMAT = 2
HOW_TO_INSTALL = (
    "install it with pip install 'tencrop[ffcv]' (a C++ compiler, OpenCV and libturbojpeg must be there; make install"
    " brings all of it), or set data.loader=beton"
)


def in_present_terms(values: dict[str, Any]) -> dict[str, Any]:
    """The content of a run's config.yaml, of any format, as this code means it; without `config_format`."""
    values, data = dict(values), dict(values["data"])
    if values.pop("config_format", 1) == 1 and data.get("loader") == "ffcv":
        data["loader"] = "beton"
    # No format number marks this change: the tracker affects neither what is learned nor the digest of config.yaml.
    if "tracker" in values:
        values["tracker"] = without_removed_tracker(values["tracker"])
    return values | {"data": data}


def check_loader(data: Data) -> None:
    """UserError where the loader is not installed; imports nothing, so that it is said at once."""
    if data.loader == "ffcv" and find_spec("ffcv") is None:
        raise UserError(f"data.loader=ffcv: ffcv is not installed; {HOW_TO_INSTALL}")
