"""The options of sbatch for a job, and the shell script with the settings of the cluster."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tencrop.cli.command_line import for_shell
from tencrop.config import Cluster, Hardware, UserError

TRAIN, SEEDS, EVALUATE = "slurm/train.sbatch", "slurm/seeds.sbatch", "slurm/evaluate.sbatch"


@dataclass(frozen=True)
class Job:
    """A job to submit: one training, an array of seeds, or an evaluation.

    folder: of the log and of the snapshot. words: arguments of the batch file, without the seed of an array.
    """

    name: str
    batch_file: str  # TRAIN | SEEDS | EVALUATE
    folder: Path
    words: tuple[str, ...]
    hardware: Hardware
    seeds: tuple[int, ...] = ()  # of an array
    after: tuple[str, ...] = ()  # jobs that must have ended, in whatever way
    after_success: tuple[str, ...] = ()  # jobs that must have succeeded; SLURM cancels this one if any of them fails

    @property
    def log(self) -> Path:
        """The log file, with SLURM's own patterns for the numbers of the job."""
        return self.folder.absolute() / ("slurm-%A_%a.log" if self.seeds else "slurm-%j.log")


def check_hardware(hardware: Hardware) -> None:
    """Raise UserError for hardware that depends on the machine, which is another one at submission."""
    if hardware.accelerator == "auto":
        raise UserError("hardware=auto: a job must state what it needs; give hardware=gpu1, gpu8, nodes2x8 or cpu")


def options(job: Job, cluster: Cluster) -> list[str]:
    """The options of sbatch, which override the #SBATCH lines of the batch file."""
    hardware = job.hardware
    given = {
        "job-name": job.name,
        # sbatch would take a % in a folder's name for one of its patterns.
        "output": str(job.log.parent).replace("%", "%%") + f"/{job.log.name}",
        "nodes": hardware.nodes,
        # One task per device: the ranks are srun's, so that SLURM signals, binds and counts each of them.
        "ntasks-per-node": hardware.devices,
        "gpus-per-node": hardware.devices if hardware.accelerator == "gpu" else None,
        "array": ",".join(map(str, job.seeds)) or None,
        "dependency": _dependency(job),
        # Without it, a job whose source has failed would stay in the queue forever.
        "kill-on-invalid-dep": "yes" if job.after_success else None,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "time": cluster.time,
        "cpus-per-task": cluster.cpus_per_task,
    }
    # The cluster's own options come last: of an option given twice, sbatch takes the last one.
    return [f"--{key}={value}" for key, value in given.items() if value is not None] + cluster.options


def _dependency(job: Job) -> str | None:
    # afterany for the evaluation of a table: it takes what there is, and says what is missing. afterok for a training
    # that starts from the weights of another; a training that is requeued has not ended.
    kinds = {"afterany": job.after, "afterok": job.after_success}
    return ",".join(f"{kind}:{':'.join(numbers)}" for kind, numbers in kinds.items() if numbers) or None


def command(job: Job, cluster: Cluster, snapshot: Path) -> list[str]:
    """The command that submits the job from its snapshot."""
    # --parsable: the answer is the number alone, which submit._sbatch reads, and no sentence ("Submitted batch job 7").
    return ["sbatch", "--parsable", *options(job, cluster), str(snapshot / job.batch_file), *job.words]


def shown(command: Sequence[str]) -> str:
    """A command as it is typed in a shell."""
    return " ".join(map(for_shell, command))


def cluster_script(cluster: Cluster) -> str:
    """slurm/cluster.sh of a snapshot: what the job does before Python starts.

    `environment` sets variables in the order of the file; values are literal.
    """
    # The file is sourced and not run, so `exit` ends the job: without the module it would fail later and less clearly.
    lines = ["# Written by submit.py from conf/cluster, and sourced by slurm/environment.sh."]
    lines += [f"module load {shlex.quote(name)} || exit 2" for name in cluster.modules]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items()]
    if not cluster.network:
        # A default only: a user who has set WANDB_MODE=disabled keeps it.
        lines.append('export WANDB_MODE="${WANDB_MODE:-offline}"  # compute nodes without network')
    return "\n".join(lines) + "\n"
