"""Chooses Lightning's cluster environment, for training and evaluation.

Importing Lightning takes seconds, so code that must start fast imports this module inside functions.
"""

from __future__ import annotations

import warnings

from pytorch_lightning.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from tencrop.config.launcher import launched


def cluster_environment() -> ClusterEnvironment:
    """The environment that tells ranks how to find each other, as set by torchrun, srun or distributed/launch.py."""
    match launched():
        case None:
            return LightningEnvironment()
        case ("torchrun", _, _):
            return TorchElasticEnvironment()
        case _:
            # auto_requeue=True would install Lightning's signal handlers; slurm/train.sbatch requeues the job instead.
            with warnings.catch_warnings():
                # Lightning does not expect srun in a job named "interactive", as salloc names it.
                warnings.filterwarnings("ignore", r".*The `srun` command is available")
                return SLURMEnvironment(auto_requeue=False)
