"""Checks that the loader named by `data.loader` is installed, and translates the name in older configurations.

Before config_format 2, `ffcv` was the name of our own loader, which reads ffcv's file format. It is now `beton`.
"""

from __future__ import annotations

from importlib.util import find_spec

from tencrop.config.documents import Document
from tencrop.config.schema import Data, UserError
from tencrop.config.tracker import without_removed_tracker

# Version of a run's config.yaml. Format 1 (not written into the file): `loader: ffcv` is our own loader. Format 2: it
# is stock ffcv.
CONFIG_FORMAT = 2
HOW_TO_INSTALL = (
    "install it with pip install 'tencrop[ffcv]' (a C++ compiler, OpenCV and libturbojpeg must be there; make install"
    " brings all of it), or set data.loader=beton"
)


def upgrade_config(values: Document) -> Document:
    """Convert the content of a run's config.yaml from any older format to the current one; drops `config_format`."""
    values, data = dict(values), dict(values["data"])
    if values.pop("config_format", 1) == 1 and data.get("loader") == "ffcv":
        data["loader"] = "beton"
    # No format number marks this change: the tracker affects neither what is learned nor the digest of config.yaml.
    if "tracker" in values:
        values["tracker"] = without_removed_tracker(values["tracker"])
    for key in (
        "stage",
        "keep_stage",
    ):  # of the job that trained, not of one that reads the run; a stranger's paths too
        data.pop(key, None)
    values.pop("claim", None)  # a printed error, which is now in conf/errors only
    return values | {"data": data}


def check_loader(data: Data) -> None:
    """Raise UserError if the loader is not installed. Does not import it, which takes seconds."""
    if data.loader == "ffcv" and find_spec("ffcv") is None:
        raise UserError(f"data.loader=ffcv: ffcv is not installed; {HOW_TO_INSTALL}")
