"""Chooses the loader class by the name in `data.loader`."""

from __future__ import annotations

from tencrop.data.loading.loader import BaseLoader, Loader
from tencrop.data.loading.reference import TorchLoader


def loader_class(name: str) -> type[BaseLoader]:
    """beton: our C decoder | ffcv: stock ffcv's loader, driven by our plan | torch: the reference, on original files.

    Raises UserError if `name` is ffcv and it cannot be imported.
    """
    if name == "ffcv":
        # Imported only here: ffcv is an optional dependency, and importing it takes seconds.
        from tencrop.data.loading.ffcv_loader import FfcvLoader, ffcv_decoder

        ffcv_decoder()  # fail now if it cannot be imported, before a run folder is created
        return FfcvLoader
    return {"beton": Loader, "torch": TorchLoader}[name]
