"""The command `evaluate`: measures the error rates of trained weights under a test protocol."""

from tencrop.cli.command import command, overrides
from tencrop.config import Config, check_precision
from tencrop.config.launcher import check_launch, is_first_process
from tencrop.config.run_config import is_run_folder
from tencrop.config.tracker import check_tracker
from tencrop.evaluation.targets import check_ensemble, evaluation_targets, score_files
from tencrop.signals import close_at_ctrl_c


@command("evaluate", Config)
def main(config: Config) -> int:
    if config.scores is not None:
        return _average_scores(config)
    # The checks down to check_launch run before torch is imported, so that a mistake is reported at once.
    members = evaluation_targets(config, overrides())
    check_ensemble(members)
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


def _average_scores(config: Config) -> int:
    paths = score_files(config, overrides())

    from tencrop.evaluation.evaluate import evaluate_scores
    from tencrop.evaluation.results import print_results

    close_at_ctrl_c()
    if not is_first_process():
        return 0
    joint = evaluate_scores(config, paths)
    print_results([joint.result])
    print(f"{joint.out}/{joint.result['scores']}")
    return 0
