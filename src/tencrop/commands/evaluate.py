"""The command `evaluate`: measures the error rates of trained weights under a test protocol."""

import contextlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tencrop.cli.command import command, overrides
from tencrop.cli.command_line import keys_typed
from tencrop.config import EvaluateConfig, check_precision, own_keys, plain_config
from tencrop.config.launcher import check_launch, is_first_process
from tencrop.config.recipes import print_recipes
from tencrop.config.run_config import is_run_folder
from tencrop.config.tracker import check_tracker
from tencrop.evaluation.targets import EvaluationTarget, check_ensemble, evaluation_targets, score_files
from tencrop.signals import close_at_ctrl_c

if TYPE_CHECKING:
    from tencrop.evaluation.evaluate import Evaluated


@command("evaluate", EvaluateConfig)
def main(config: EvaluateConfig) -> int:
    if config.weights_dir is not None:
        from tencrop.commands.calibrate import calibrate

        return calibrate(config, overrides())
    if config.table is not None:
        from tencrop.commands.evaluate_table import evaluate_table

        return evaluate_table(config, overrides())
    if config.scores is not None:
        return _average_scores(config, config.scores)
    # Until torch is imported, only checks: a mistake is reported at once.
    typed = [word for word in overrides() if not keys_typed([word]) & own_keys(EvaluateConfig)]
    plain = plain_config(config)
    if config.checkpoint is None and config.weights is None:  # the run that train.py makes of these values
        print_recipes([plain])
    targets = evaluation_targets(plain, typed)
    check_targets(targets)
    if config.checkpoint is not None:  # `typed`: a checkpoint outside a run folder, where nothing tells its recipe
        print_recipes(target.config for target in targets if not target.is_published)
    if found := evaluate_and_track(targets):
        from tencrop.evaluation.results import print_results

        print_results([evaluated.result for evaluated in found])
        print("\n".join(f"{evaluated.out}/{evaluated.result['scores']}" for evaluated in found))
    return 0


def check_targets(targets: Sequence[EvaluationTarget]) -> None:
    """Raises UserError for targets that cannot be evaluated here, or not as an ensemble; does not import torch."""
    check_ensemble(targets)
    for target in targets:
        check_precision(target.config)
        if target.out is not None and is_run_folder(target.out.parent):  # its error rates go to the tracker
            check_tracker(target.config.tracker)
    check_launch(targets[0].config.hardware)


def evaluate_and_track(targets: Sequence[EvaluationTarget]) -> "list[Evaluated]":
    """Evaluate targets, and several as an ensemble, which comes last; log the errors of runs with their trackers.

    The list is empty on all processes but the first.
    """
    from tencrop.evaluation.evaluate import evaluate_targets
    from tencrop.records.tracked_errors import track_result
    from tencrop.report.collect import collect
    from tencrop.report.tables import COLUMNS, error_rows

    # Only now: an exception during the imports would abort some C++ modules. SIGTERM: a scheduler ends or requeues the
    # job, and the watcher of ranks then waits less for a silent node (distributed/liveness.py).
    close_at_ctrl_c(signal.SIGTERM)
    with staged_targets(targets) as local_targets:
        found = evaluate_targets(local_targets)
    # strict=False: with several targets, the last item of `found` is the ensemble, which belongs to no run.
    for target, evaluated in zip(targets, found, strict=False):
        if is_run_folder(run_dir := evaluated.out.parent):
            rows = error_rows(collect([run_dir]))
            track_result(target.config, run_dir, evaluated.result, COLUMNS, [row.cells for row in rows])
    return found


@contextlib.contextmanager
def staged_targets(targets: Sequence[EvaluationTarget]) -> Iterator[list[EvaluationTarget]]:
    """The targets with the copies of their data in data.stage, which last until the end of the block."""
    from tencrop.data.preparation.stage import staged

    with contextlib.ExitStack() as copies:
        # Only val: the training images are most of the store, and nothing here reads them.
        roots = [copies.enter_context(staged(target.config.data, ["val"])) for target in targets]
        yield [
            replace(target, config=replace(target.config, data=data))
            for target, data in zip(targets, roots, strict=True)
        ]


def _average_scores(config: EvaluateConfig, files: Sequence[str]) -> int:
    paths = score_files(files, overrides())

    from tencrop.evaluation.evaluate import evaluate_scores
    from tencrop.evaluation.results import print_results

    close_at_ctrl_c()
    # Averaging needs no other rank, so a launcher's further processes have nothing to do.
    if is_first_process():
        joint = evaluate_scores(plain_config(config), paths)
        print_results([joint.result])
        print(f"{joint.out}/{joint.result['scores']}")
    return 0
