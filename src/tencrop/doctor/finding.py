"""The result of one check, and the merging of the results of several nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tencrop.config import UserError
from tencrop.config.disk_errors import disk_sentence

State = Literal["ok", "warning", "error"]
MUST_AGREE = ("versions",)  # checks whose text must be the same on every node


@dataclass(frozen=True)
class Finding:
    """What a check has found: its state, one sentence, and for a warning or an error how to fix it."""

    check: str
    state: State
    text: str
    remedy: str | None = None
    hosts: tuple[str, ...] = ()  # the nodes that found this; empty: it concerns the whole job


def ok(check: str, text: str) -> Finding:
    return Finding(check, "ok", text)


def warning(check: str, text: str, remedy: str) -> Finding:
    return Finding(check, "warning", text, remedy)


def error(check: str, text: str, remedy: str) -> Finding:
    return Finding(check, "error", text, remedy)


def attempt(check: str, examine: Callable[[], Sequence[Finding]]) -> list[Finding]:
    """The findings of `examine`; an error finding if it raises what a user's input or disk explains."""
    try:
        return list(examine())
    # Nothing wider than these two: a bug in a check must show its traceback, and must not look like a bad machine.
    except UserError as problem:
        text, _, remedy = str(problem).partition("; ")  # the order of every UserError: what is wrong; what to do
        return [error(check, text, remedy or "correct it, and run doctor.py again")]
    except OSError as problem:
        text, _, remedy = disk_sentence(problem).partition("; ")
        return [error(check, text, remedy)]


def merged(findings_of: Mapping[str, Sequence[Finding]]) -> list[Finding]:
    """One list from the findings of each host: equal ones are stated once, with the hosts that found them.

    Adds an error for a check of MUST_AGREE whose text differs between the hosts.
    """
    # A Finding is frozen and therefore hashable: what 100 nodes find alike becomes one key, and one line.
    hosts: dict[Finding, list[str]] = {}
    for host, findings in findings_of.items():
        for finding in findings:
            hosts.setdefault(finding, []).append(host)
    found = [replace(finding, hosts=tuple(names)) for finding, names in hosts.items()]
    # Only of "ok" findings, which every node has once; a warning below it may concern one node alone.
    for check in MUST_AGREE:
        if len({finding.text for finding in found if finding.check == check and finding.state == "ok"}) > 1:
            found.append(error(check, "differ between the nodes", "start the same environment on every node"))
    order = list(dict.fromkeys(finding.check for findings in findings_of.values() for finding in findings))
    return sorted(found, key=lambda finding: order.index(finding.check))  # stable: the lines of a check stay together
