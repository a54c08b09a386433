"""evaluate.py table=NAME: evaluates the finished runs of a paper's table, lists what is missing, and prints the table.

Every evaluation is saved when it is done, so the same command continues after an interruption.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tencrop.cli.command_line import command_prefix, for_shell, keys_typed
from tencrop.commands.evaluate import check_targets, evaluate_and_track
from tencrop.config import Config, EvaluateConfig, Hardware, UserError, own_keys, plain_config
from tencrop.config.code import PACKAGE, SCORING, code_sha256
from tencrop.config.launcher import launched
from tencrop.evaluation.targets import EVALUATIONS, evaluation_targets
from tencrop.report.paper_tables import HASHES, OUTPUT, TITLES, report_tables, show
from tencrop.report.row_commands import training_commands
from tencrop.report.row_runs import RunsOf, runs_of_tables
from tencrop.report.table_plan import Pending, Remaining, plan_table
from tencrop.signals import close_at_ctrl_c
from tencrop.tables.lines import folders_text
from tencrop.tables.reading import ERRORS, chosen_tables, with_bases
from tencrop.tables.schema import Overrides, RowTraining

# What a user may type beside table=NAME: it changes neither the recipe nor the protocol, which the table's rows give.
ALLOWED = {"runs", "data", "hardware", "tracker", "deterministic"}


def evaluate_table(config: EvaluateConfig, overrides: Sequence[str], folder: Path = ERRORS) -> int:
    """Evaluate what can be evaluated of the table `config.table`; returns the exit code.

    overrides: the command line as KEY=VALUE. Raises UserError for an override that a row fixes. A run that cannot be
    evaluated is reported, and the others are evaluated all the same.
    """
    assert config.table is not None
    if config.table == TITLES:
        return report_tables(TITLES, [], OUTPUT, folder)
    typed = check_words(config, overrides)
    pending, remaining, runs_of = plan_tables(config, folder)
    failed = _evaluate(pending, plain_config(config), [word for word in typed if not keys_typed([word]) & {"runs"}])
    _print_remaining(remaining + failed, runs_of, typed, config.hardware if _chose_hardware(typed) else None)
    code = report_tables(config.table, [str(path) for path in _search_paths(config)], OUTPUT, folder)
    return 2 if failed else code


def plan_tables(config: EvaluateConfig, folder: Path = ERRORS) -> tuple[list[Pending], list[Remaining], RunsOf]:
    """The evaluations that the table `config.table` lacks, or all tables; the rows that need more; the runs found."""
    assert config.table is not None
    # Bases are rows of other tables: their runs must be evaluated too, or a difference could not be printed.
    tables, paths = with_bases(chosen_tables(config.table, folder), folder), _search_paths(config)
    broken: list[UserError] = []  # report_tables prints them
    close_at_ctrl_c()
    runs_of = runs_of_tables(tables, paths, kept=OUTPUT / HASHES, on_broken=broken.append)
    evaluations = []
    if runs_of:
        from tencrop.report.collect import collect_evaluations  # takes 0.2 s to import

        evaluations = collect_evaluations(paths, lambda found: broken.append(found.error))
    pending, remaining = list[Pending](), list[Remaining]()
    for table in tables:
        missing, others = plan_table(table, runs_of, evaluations, code_sha256=code_sha256(PACKAGE, SCORING))
        # Two tables may print the same network: a recipe under a protocol is evaluated once.
        pending += [one for one in missing if one.members not in [other.members for other in pending]]
        remaining += others
    return pending, remaining, runs_of


def _search_paths(config: Config) -> list[Path]:
    """Where runs and evaluations lie; the latter may come into being with the first ensemble."""
    return [path for path in (Path(config.runs), EVALUATIONS) if path.is_dir()]


def check_words(config: EvaluateConfig, overrides: Sequence[str]) -> list[str]:
    """The overrides without this command's own keys. Raises UserError for one that a row fixes."""
    typed = [word for word in overrides if not keys_typed([word]) & own_keys(EvaluateConfig)]
    for word in typed:
        if not all(key.partition(".")[0] in ALLOWED for key in keys_typed([word])):
            raise UserError(
                f"{word}: with table={config.table}, each row gives the runs and the protocol; leave it out, or leave"
                " out table"
            )
    # Every evaluation starts its own processes; each rank of a launcher would go through the whole table.
    if (found := launched()) is not None and found.num_processes > 1:
        raise UserError(
            f"table={config.table}: cannot be evaluated under {found.launcher}; start one process, which starts"
            " hardware.devices processes itself"
        )
    return typed


def _evaluate(pending: Sequence[Pending], config: Config, typed: Sequence[str]) -> list[Remaining]:
    """Make the evaluations, and print a line for each; returns those that failed."""
    failed = []
    for number, one in enumerate(pending, 1):
        folders = folders_text([path.parents[1] for path, _ in one.members])
        try:
            result = _evaluated(one, config, typed)
        # One broken run of 60 must not end a night of evaluations; the exit code still says that one failed.
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failed.append(Remaining(one.label, f"{folders}: {error}"))
            continue
        print(f"{number}/{len(pending)} {one.label}: {folders}, {_errors_text(result)}", flush=True)
    return failed


def _evaluated(one: Pending, config: Config, typed: Sequence[str]) -> dict[str, Any]:
    """Make one evaluation; returns the content of its result.json."""
    # An average of saved scores takes seconds; evaluating the members again would take minutes each.
    if one.scores:
        from tencrop.evaluation.evaluate import evaluate_scores

        # The row's average, softmax or logits: the saved scores have both.
        averaged = replace(config, protocol=replace(config.protocol, average=one.average))
        return evaluate_scores(averaged, one.scores).result
    targets = [
        target
        for path, protocol in one.members
        # A member at a time, because members of one ensemble may have different protocols.
        for target in evaluation_targets(replace(config, checkpoint=str(path)), [*typed, *protocol])
    ]
    # As if typed one by one: an error of this evaluation is one line, and the next one starts.
    check_targets(targets)
    return evaluate_and_track(targets)[-1].result


def _errors_text(result: dict[str, Any]) -> str:
    """Protocol and errors of a result.json in words: "dense 224 of 256 px, softmax: top-1 25.60%, top-5 8.10%"."""
    from tencrop.evaluation.results import TOP, protocol_label

    errors = ", ".join(f"top-{k} {100 * result[f'top{k}_error']:.2f}%" for k in TOP)
    return f"{protocol_label(result)}: {errors}"


def _print_remaining(
    remaining: Sequence[Remaining], runs_of: RunsOf, typed: Sequence[str], hardware: Hardware | None
) -> None:
    """List the rows without a number, one entry for the rows that share a reason or the same trainings.

    The command of a run that others start from is printed once, before them.
    """
    # A table may lack 60 rows for one reason: a line for each would bury the commands.
    groups: dict[tuple[str | None, tuple[RowTraining, ...]], list[str]] = {}
    for one in remaining:
        groups.setdefault((one.reason, one.trainings), []).append(one.label)
    lines, printed = list[str](), set[Overrides]()
    for (reason, trainings), labels in groups.items():
        chains = [training_commands(training, runs_of, typed) for training in trainings]
        order = ", after the run that it starts from" if any(len(chain) > 1 for chain in chains) else ""
        lines.append(f"not evaluated: {'; '.join(labels)}: {reason or 'train first'}{order}")
        sources = [words for chain in chains for words in chain[:-1] if words not in printed]
        # A dict, since the order counts: the run that others start from comes first.
        commands = dict.fromkeys([*sources, *(chain[-1] for chain in chains)])
        for words in commands:
            lines.append(f"    {' '.join([command_prefix('train'), *map(for_shell, (*words, *typed))])}")
            lines.append(f"    {sbatch_line((*words, *typed), hardware)}")
        printed |= set(commands)
    if lines:
        show([*lines, ""])


def sbatch_line(overrides: Overrides, hardware: Hardware | None) -> str:
    """The command that submits a training; slurm/train.sbatch needs as many tasks as hardware.devices and nodes.

    hardware: what the user has chosen in `overrides`; None: one GPU.
    """
    devices, nodes = (hardware.devices, hardware.nodes) if hardware is not None else (1, 1)
    options = [f"--nodes={nodes}"] if nodes > 1 else []
    # slurm/train.sbatch asks for one task a node; train.py refuses another number of processes than hardware.devices.
    options += [f"--gpus-per-node={devices}", *([f"--ntasks-per-node={devices}"] if devices > 1 else [])]
    # hardware=auto, the default, would train on the CPU of a job that got no GPU.
    own = () if hardware is not None else ("hardware=gpu1",)
    return " ".join(["sbatch", *options, "slurm/train.sbatch", *map(for_shell, (*overrides, *own))])


def _chose_hardware(typed: Sequence[str]) -> bool:
    return any(key.partition(".")[0] == "hardware" for key in keys_typed(typed))
