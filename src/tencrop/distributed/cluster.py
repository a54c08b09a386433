"""Chooses Lightning's cluster environment. Importing Lightning takes seconds, so callers import this module late."""

from __future__ import annotations

from pytorch_lightning.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from tencrop.config.launcher import launched


def cluster_environment() -> ClusterEnvironment:
    """The environment through which ranks find each other: variables of torchrun, srun, or distributed/launch.py."""
    match launched():
        case None:
            return LightningEnvironment()
        case ("torchrun", _, _):
            return TorchElasticEnvironment()
        case _:
            # Lightning's requeueing installs its own signal handlers; slurm/train.sbatch requeues the job instead.
            return SLURMEnvironment(auto_requeue=False)
