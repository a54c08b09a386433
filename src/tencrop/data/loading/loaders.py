"""The loader that `data.loader` names. Called by the data module and by evaluation."""

from __future__ import annotations

from tencrop.data.loading.loader import BaseLoader, Loader
from tencrop.data.loading.reference import TorchLoader


def loader_class(name: str) -> type[BaseLoader]:
    """beton: our own decoder | ffcv: stock ffcv's, with our plan | torch: the reference, over the original files.

    Raises UserError where ffcv cannot be imported.
    """
    if name == "ffcv":
        from tencrop.data.loading.ffcv_loader import FfcvLoader, ffcv_decoder

        ffcv_decoder()  # seconds; what is missing is said before a run folder is made
        return FfcvLoader
    return {"beton": Loader, "torch": TorchLoader}[name]
