"""Evaluates trained weights under a protocol. Called by evaluate.py and `tencrop evaluate`."""

from tencrop.cli.command import command, overrides
from tencrop.config import Config, check_precision
from tencrop.config.launcher import check_launch
from tencrop.config.run_config import is_run_folder
from tencrop.config.tracker import check_tracker
from tencrop.evaluation.targets import check_ensemble, evaluation_targets
from tencrop.signals import close_at_ctrl_c


@command("evaluate", Config)
def main(config: Config) -> int:
    members = evaluation_targets(config, overrides())  # what is wrong is refused before torch is imported
    check_ensemble(members)
    for member in members:
        check_precision(member.config)
        if member.out is not None and is_run_folder(member.out.parent):  # errors of a run are tracked
            check_tracker(member.config.tracker)
    check_launch(members[0].config.hardware)

    from tencrop.evaluation.evaluate import evaluate_targets
    from tencrop.evaluation.results import print_results
    from tencrop.records.tracked_errors import track_result
    from tencrop.report.collect import (
        collect,
    )
    from tencrop.report.tables import COLUMNS, error_rows

    close_at_ctrl_c()
    if found := evaluate_targets(members):  # empty but on the first of several processes
        print_results([evaluated.result for evaluated in found])
        print("\n".join(f"{evaluated.out}/{evaluated.result['scores']}" for evaluated in found))
        for member, evaluated in zip(members, found, strict=False):  # an ensemble, last, belongs to no run
            if is_run_folder(run_dir := evaluated.out.parent):
                rows = error_rows(collect([run_dir]))
                track_result(member.config, run_dir, evaluated.result, COLUMNS, [row.cells for row in rows])
    return 0
