"""A SLURM cluster of two nodes on this machine: munged, slurmctld and two slurmd, all in one folder.

Nothing outside the folder is read or written, so that a cluster that this machine belongs to is not touched. The
fixture `cluster` (conftest.py) starts one for all tests.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")
NODES = ("n0", "n1")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}  # the others pass
POLL_S = 0.3
# Each node claims 64 cores, so that jobs run side by side on any machine. cred_expire: a requeued job waits this long
# before it starts again, by default 120 s. MinJobAge: ended jobs stay visible. Everything else that the tests rely on
# has SLURM's default value.
CONFIG = """
ClusterName=loopback
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdParameters=config_overrides
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
PlugStackConfig=/dev/null
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
SlurmdTimeout={slurmd_timeout_s}
MinJobAge=7200
FirstJobId={first_job}
NodeName=n0 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=64 State=UNKNOWN
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=64 State=UNKNOWN
PartitionName=all Nodes=n0,n1 Default=YES State=UP
"""


def missing_programs() -> list[str]:
    """The programs of Debian's packages slurm-wlm and munge that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


class Cluster:
    """A running cluster. Leaving the context ends every process that it started, those of its jobs too."""

    def __init__(self, folder: Path, slurmd_timeout_s: int):
        """folder: empty, with a path of less than 80 characters, because Unix sockets are created in it."""
        self.folder = folder
        # Without the variables of a job of another cluster that the tests may run in.
        outside = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SRUN", "SBATCH"))
        }
        self.environment = outside | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        ports = _free_ports(3)
        values = {"folder": folder, "user": getpass.getuser(), "ports": ports}
        values |= {"slurmd_timeout_s": slurmd_timeout_s, "first_job": ports[0] % 9000 + 1}
        (folder / "slurm.conf").write_text(CONFIG.format(**values))
        self.daemons: dict[str, subprocess.Popen] = {}
        (folder / "state").mkdir()

    def __enter__(self) -> Cluster:
        folder = self.folder
        try:
            self.run("mungekey", "--create", f"--keyfile={folder}/munge.key")
            files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "log", "pid", "seed")]
            # --force: munged warns about the mode of /tmp instead of refusing it.
            self._start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files)
            self._wait_until((folder / "munge.socket").exists)
            self._start("slurmctld", "-D")
            for node in NODES:
                self.start_node(node)
            self._wait_until(lambda: self.run("sinfo", "-hNo%T", check=False).split() == ["idle", "idle"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in NODES:
            self.kill_node(node)
        for daemon in self.daemons.values():
            daemon.kill()  # its state lies in a folder that is removed
            daemon.wait()

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            ended = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            assert not ended, f"{', '.join(ended)} ended:\n{self._log()}"
            time.sleep(POLL_S)

    def start_node(self, node: str) -> None:
        (self.folder / node).mkdir(exist_ok=True)
        # The variable is inherited by the node's steps, and srun sets it for their tasks: it tells whose they are.
        self._start("slurmd", "-D", "-N", node, name=node, SLURMD_NODENAME=node)

    def kill_node(self, node: str) -> None:
        """Kill slurmd, its steps and their tasks, as if the node had lost power. Connections are reset."""
        self.signal_node(node, signal.SIGKILL)
        if node in self.daemons:
            self.daemons.pop(node).wait()

    def signal_node(self, node: str, number: signal.Signals) -> None:
        """Send a signal to every process of a node. SIGSTOP makes it silent: its connections stay open."""
        signalled: set[int] = set()
        while processes := self._processes(node) - signalled:  # again: some may just have started others
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)
            signalled |= processes

    def run(
        self, *command: str, cwd: Path | None = None, variables: Mapping[str, str] | None = None, check: bool = True
    ) -> str:
        """Run a command of the cluster; returns what it printed on stdout."""
        environment = {**self.environment, **(variables or {})}
        # Without a terminal as stdin: a program that asks would wait forever.
        result = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert result.returncode == 0 or not check, f"{' '.join(command)}: {result.stdout}{result.stderr}"
        return result.stdout

    def submit(self, *words: str, cwd: Path, variables: Mapping[str, str] | None = None) -> Job:
        return Job(self, int(self.run("sbatch", "--parsable", *words, cwd=cwd, variables=variables)), cwd)

    def _start(self, program: str, *arguments: str, name: str = "", **variables: str) -> None:
        with (self.folder / f"{name or program}.out").open("a") as output:
            self.daemons[name or program] = subprocess.Popen(
                [program, *arguments], cwd=self.folder, env=self.environment | variables, stdout=output, stderr=output
            )

    def _processes(self, node: str) -> set[int]:
        """The process ids of slurmd on a node, of its steps, and of their tasks."""
        return self.processes_with(f"SLURMD_NODENAME={node}")

    def processes_with(self, *variables: str) -> set[int]:
        """The processes of this cluster that have these variables in their environment."""
        marks = {word.encode() for word in (f"SLURM_CONF={self.folder}/slurm.conf", *variables)}
        found = set()
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if marks <= set(path.read_bytes().split(b"\0")):
                    found.add(int(path.parent.name))
        return found

    def _log(self) -> str:
        return "\n".join(f"{path}:\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))


@dataclass(frozen=True)
class Job:
    """A submitted job. Its log is the --output of the shipped files."""

    cluster: Cluster
    number: int
    folder: Path  # that it was submitted from

    @property
    def log(self) -> str:
        path = self.folder / f"slurm-{self.number}.log"
        return path.read_text() if path.exists() else ""

    def states(self) -> list[str]:
        """PENDING, RUNNING, COMPLETED, ...: one, or one of each task of an array."""
        return self._queue("%T")

    def _queue(self, columns: str) -> list[str]:
        words = ("--noheader", "--states=all", "--array", f"--jobs={self.number}", f"--format={columns}")
        return self.cluster.run("squeue", *words).splitlines()

    def detail(self, name: str) -> str:
        """A field of `scontrol show job`, such as ExitCode (CODE:SIGNAL) or Restarts."""
        found = re.search(rf"\b{name}=(\S+)", self.cluster.run("scontrol", "show", "job", str(self.number)))
        assert found is not None
        return found[1]

    def signal_tasks(self, number: signal.Signals) -> None:
        """Send a signal to the tasks of srun, without SLURM's knowledge."""
        for process in self._tasks():
            os.kill(process, number)

    def is_pending(self, number: signal.Signals) -> bool:
        """Whether a task that is stopped has been sent this signal."""
        texts = [Path(f"/proc/{process}/status").read_text() for process in self._tasks()]
        masks = [int(mask, 16) for text in texts for mask in re.findall(r"^(?:Sig|Shd)Pnd:\s*(\w+)$", text, re.M)]
        return any(mask >> (number - 1) & 1 for mask in masks)

    def _tasks(self) -> set[int]:
        return self.cluster.processes_with(f"SLURM_JOB_ID={self.number}", "SLURM_STEP_ID=0")

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Poll until the condition is true; AssertionError with the log if the job ends without it."""
        while not condition():
            if set(self.states()) & ENDED:
                time.sleep(1)  # the log may still be written
                assert condition(), f"job {self.number} is {self.states()} before {what}:\n{self.log}"
                return
            time.sleep(POLL_S)

    def wait(self, state: str = "COMPLETED") -> None:
        """Wait until the job has ended, in this state."""
        while not set(self.states()) <= ENDED:
            time.sleep(POLL_S)
        assert set(self.states()) == {state}, f"job {self.number} is {self.states()}:\n{self.log}"


def _path() -> str:
    # munged and slurmctld lie in sbin, which the PATH of a user other than root does not name.
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
