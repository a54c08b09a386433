"""How the ranks of a run find each other. Imports Lightning, so callers that may not need it import this late."""

from __future__ import annotations

from pytorch_lightning.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from tencrop.config.launcher import launched


def cluster_environment() -> ClusterEnvironment:
    """How the ranks find each other: by torchrun's variables, srun's, or those of distributed/launch.py."""
    match launched():
        case None:
            return LightningEnvironment()
        case ("torchrun", _, _):
            return TorchElasticEnvironment()
        case _:
            return SLURMEnvironment(auto_requeue=False)
