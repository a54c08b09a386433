"""The command train: trains a run, resumes it, or shows its result if it is complete; with plan=true, estimates it."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any

from tencrop.cli.command import command, overrides
from tencrop.cli.command_line import keys_typed
from tencrop.config import (
    Batches,
    Config,
    Data,
    UserError,
    check_data,
    check_preparation,
    check_store,
    derive_batches,
    run_path,
)
from tencrop.config.initialization import source_file, teacher_file
from tencrop.config.launcher import check_launch, check_one_process, is_first_process
from tencrop.config.loader import check_loader
from tencrop.config.recipes import print_recipes
from tencrop.config.tracker import check_tracker
from tencrop.data.sources.imagenet_test_sets import check_has_training_split
from tencrop.data.store.manifest import read_manifest
from tencrop.evaluation.targets import check_one_protocol
from tencrop.records.run_folder import finish, is_complete, run_folder
from tencrop.signals import exit_at_once, exit_when_asked

if TYPE_CHECKING:
    from tencrop.training.fit import FitResult

STAGE_MINUTES = 120  # how far apart the nodes of a job may finish their copies (data.stage)


@command("train", Config)
def main(config: Config) -> int:
    check_has_training_split(config.data.name)
    exit_at_once()  # again: in a sweep, the run before ended with signals ignored (exit_when_asked)
    print_recipes([config])
    # These checks need neither torch nor timm, so a mistake is reported in under a second.
    check_one_protocol(overrides())
    if config.plan:
        # A plan measures one device; under a launcher, every rank would do so and print its own.
        check_one_process()
    else:
        check_launch(config.hardware)
        check_tracker(config.tracker)
    batches = derive_batches(config)
    check_loader(config.data)
    manifest = read_manifest(config.data.root, config.data.name, store=config.data.store)
    check_data(config, manifest)
    check_store(config, manifest)
    check_preparation(config, manifest, keys_typed(overrides()))
    # Called for its errors alone: the file itself is read when torch is there.
    source_file(config.training.init, run_path(config))
    if config.training.distill.teacher is not None and not is_complete(run_path(config)):
        teacher_file(config.training.distill, run_path(config))
    if config.plan:
        if config.data.stage is not None:
            raise UserError("data.stage: plan=true measures data.root and copies nothing; leave it out")
        from tencrop.commands.plan import plan

        return plan(config, batches, manifest)

    # From here on torch is imported, which takes seconds.

    from tencrop.data.preparation.stage import staged
    from tencrop.training.fit import completed_fit

    fit_result = completed_fit(run_path(config))
    # A complete run is not trained, so it needs no copy of the data.
    data = config.data if fit_result is None else dataclasses.replace(config.data, stage=None)
    with staged(data, list(manifest["splits"])) as local_data:
        return _train(config, local_data, batches, manifest, fit_result)


def _train(
    config: Config, local_data: Data, batches: Batches, manifest: dict[str, Any], fit_result: FitResult | None
) -> int:
    """Train, or show the result of a complete run (fit_result); returns the exit code.

    local_data: config.data, or its copy on a disk of this node.
    """
    from tencrop.distributed.launch import launch_ranks
    from tencrop.evaluation.checks import check_scorable
    from tencrop.evaluation.evaluate import evaluate_run
    from tencrop.records.tracked_errors import track_result
    from tencrop.records.tracking import InputImages, build_logger, close_logger
    from tencrop.report.collect import collect
    from tencrop.report.page import write_report
    from tencrop.report.tables import COLUMNS, error_rows, print_table
    from tencrop.training.fit import build, fit
    from tencrop.training.initial_weights import read_initial_weights

    local = dataclasses.replace(config, data=local_data)  # for reading; the records name the original folder
    was_complete = fit_result is not None
    initial = read_initial_weights(config.training.init, run_path(config))
    if fit_result is None:  # not complete: build everything, so that errors occur before anything is written
        data, classifier = build(local, batches=batches, manifest=manifest, initial=initial)
        check_scorable(classifier.model, config)
    total_steps, teacher = (classifier.total_steps, classifier.teacher) if fit_result is None else (None, None)
    init_facts, teacher_facts = initial and initial.facts, None if teacher is None else teacher.facts
    run_dir = run_folder(config, manifest, total_steps=total_steps, init=init_facts, teacher=teacher_facts)
    is_first = is_first_process()
    # Nodes may need very different times to copy the data.
    answer_minutes = None if config.data.stage is None else STAGE_MINUTES
    # A complete run needs no further ranks: rank 0 only evaluates, or reads the result.
    num_ranks = batches.num_devices if fit_result is None else 1
    with exit_when_asked(is_first=is_first), launch_ranks(num_ranks, answer_minutes=answer_minutes):
        logger = None
        if fit_result is None:
            logger = build_logger(config, run_dir, for_training=True)
            fit_result = fit(data, classifier, run_dir=run_dir, logger=logger, callbacks=[InputImages()])
        # Recorded before the final evaluation: if that is killed, the same command only evaluates.
        hashes = {"weights_sha256": fit_result.weights_sha256, "ema_sha256": fit_result.ema_sha256}
        if warning := finish(run_dir, status=fit_result.status, **hashes):
            print(warning, file=sys.stderr)
        result = None
        if fit_result.status == "complete":
            # Evaluated within launch_ranks, because the ranks share the images of the evaluation.
            result = evaluate_run(
                local, manifest=manifest, checkpoint=fit_result.checkpoint, out=run_dir / "predictions"
            )
        if result is None:  # not complete, or not the first process
            close_logger(logger, is_complete=fit_result.status == "complete")
        else:
            # The tracker, the terminal and the page show the same rows.
            experiments = collect([run_dir])
            rows = error_rows(experiments)
            print_table(rows)
            if os.access(run_dir, os.W_OK):  # for a read-only folder, the printed table must do
                write_report(experiments, run_dir)
            # A run that was complete before may have been interrupted before it was tracked. A tracker that failed to
            # start in this command is not tried again.
            if logger is not None or (was_complete and (run_dir / "tracking").is_dir()):
                track_result(config, run_dir, result, COLUMNS, [row.cells for row in rows], logger=logger)
    if is_first:
        print(f"{run_dir}: {fit_result.message}", file=sys.stdout if fit_result.exit_code == 0 else sys.stderr)
    return fit_result.exit_code
