"""The configuration: typed, checked, and turned into a verb's argument. Imports neither torch nor timm."""

from tencrop.config.batches import Batches, accelerator_of, derive_batches, num_workers
from tencrop.config.verbs import command
from tencrop.config.identity import check_data, learning_hash, learning_keys, run_path
from tencrop.config.rules import check, typed
from tencrop.config.schema import (
    Augmentation,
    Claim,
    Config,
    Data,
    Hardware,
    Model,
    Normalization,
    Optimizer,
    Pca,
    PrepareConfig,
    Protocol,
    ReportConfig,
    Schedule,
    Splits,
    StoreOptions,
    Tracker,
    Training,
    UserError,
)

__all__ = [name for name in dir() if not name.startswith("_")]
