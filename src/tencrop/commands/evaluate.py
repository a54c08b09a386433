"""The command `evaluate`: measures the error rates of trained weights under a test protocol."""

from tencrop.cli.command import command, overrides
from tencrop.config import Config, check_precision
from tencrop.config.launcher import check_launch
from tencrop.config.recipes import print_recipes
from tencrop.config.run_config import is_run_folder
from tencrop.config.tracker import check_tracker
from tencrop.evaluation.targets import check_ensemble, evaluation_targets
from tencrop.signals import close_at_ctrl_c


@command("evaluate", Config)
def main(config: Config) -> int:
    # The checks down to check_launch run before torch is imported, so that a mistake is reported at once.
    if config.checkpoint is None and config.weights is None:  # the run that train.py makes of these values
        print_recipes([config])
    members = evaluation_targets(config, overrides())
    check_ensemble(members)
    if config.checkpoint is not None:
        print_recipes(member.config for member in members)
    for member in members:
        check_precision(member.config)
        if member.out is not None and is_run_folder(member.out.parent):  # its error rates go to the tracker
            check_tracker(member.config.tracker)
    check_launch(members[0].config.hardware)

    from tencrop.evaluation.evaluate import evaluate_targets
    from tencrop.evaluation.results import print_results
    from tencrop.records.tracked_errors import track_result
    from tencrop.report.collect import collect
    from tencrop.report.tables import COLUMNS, error_rows

    close_at_ctrl_c()  # only now: an exception during the imports would abort some C++ modules
    if found := evaluate_targets(members):  # only rank 0 has results
        print_results([evaluated.result for evaluated in found])
        print("\n".join(f"{evaluated.out}/{evaluated.result['scores']}" for evaluated in found))
        # strict=False: with several members, the last item of `found` is the ensemble, which belongs to no run.
        for member, evaluated in zip(members, found, strict=False):
            if is_run_folder(run_dir := evaluated.out.parent):
                rows = error_rows(collect([run_dir]))
                track_result(member.config, run_dir, evaluated.result, COLUMNS, [row.cells for row in rows])
    return 0
