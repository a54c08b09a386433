"""The command doctor: examines this machine, or the nodes of a job, before the first training."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tencrop.cli.command import command
from tencrop.config import DoctorConfig, plain_config
from tencrop.config.launcher import is_first_process
from tencrop.printable import printable
from tencrop.signals import close_at_ctrl_c

if TYPE_CHECKING:
    from tencrop.doctor.finding import Finding


@command("doctor", DoctorConfig)
def main(config: DoctorConfig) -> int:
    # Imported late: torch takes seconds, and --help or a mistyped key is answered without it.
    from tencrop.doctor.examine import examine
    from tencrop.doctor.slurm import node_name

    close_at_ctrl_c()
    findings = examine(plain_config(config))
    failed = [finding for finding in findings if finding.state == "error"]
    if not is_first_process():
        # Empty, unless the ranks could not communicate. On stderr, as stdout has the first process's JSON; with the
        # node in each line, because srun mixes the lines of its tasks. One write, so that it mixes fewer.
        sys.stderr.write("".join(f"{node_name()}: {printable(line)}\n" for line in lines(findings)[:-1]))
    elif config.json:
        states = {"is_ready": not failed, "findings": [dataclasses.asdict(finding) for finding in findings]}
        # json.dumps escapes control characters itself; the text below needs `printable`.
        print(json.dumps(states, indent=1))
    else:
        print("\n".join(map(printable, lines(findings))))
    return 1 if failed else 0


def lines(findings: Sequence[Finding]) -> list[str]:
    """A line for each finding, with its remedy below it, and one line of counts."""
    hosts = {host for finding in findings for host in finding.hosts}
    width = max((len(finding.check) for finding in findings), default=0)
    text = []
    for finding in findings:
        # Named only where it is not true of all nodes.
        place = f"{', '.join(finding.hosts)}: " if finding.hosts and set(finding.hosts) != hosts else ""
        text.append(f"{finding.state:<8} {finding.check:<{width}}  {place}{finding.text}")
        if finding.remedy is not None:
            text.append(f"{'':<8} {'':<{width}}  to fix it: {finding.remedy}")
    counts = [(sum(finding.state == state for finding in findings), state) for state in ("error", "warning")]
    said = ", ".join(f"{count} {state}{'' if count == 1 else 's'}" for count, state in counts)
    return [*text, f"{len(findings)} checks: {said}"]
