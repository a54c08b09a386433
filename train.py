"""Train an experiment: python train.py experiment=NAME, or model=NAME for the default recipe. --help tells more.

The same command typed again continues where the run stands, or shows its result.
"""

import copy
import sys

from tencrop.config import Config, check_data, check_store, command, derive_batches, run_path
from tencrop.config.launch import check_launch, is_first_process
from tencrop.data.manifest import read_manifest
from tencrop.records.run_folder import finish, run_folder


@command("train", Config)
def main(config: Config) -> int:
    check_launch(config.hardware)
    batches = derive_batches(config)
    manifest = read_manifest(config.data.root, config.data.name)
    check_data(config, manifest)
    check_store(config, manifest)

    from tencrop.evaluation.evaluate import evaluate_run
    from tencrop.evaluation.scoring import check_scorable
    from tencrop.records.tracking import InputImages, build_logger, close_logger, log_error_table, log_errors
    from tencrop.report.collect import collect
    from tencrop.report.page import write_report
    from tencrop.report.tables import COLUMNS, error_rows, print_table
    from tencrop.training.fit import build, completed, fit
    from tencrop.training.monitors import exit_when_asked
    from tencrop.training.ranks import ranks_together

    fitted = completed(run_path(config))
    if fitted is None:  # what does not fit is refused before anything is written
        data, classifier = build(config, batches=batches, manifest=manifest)
        check_scorable(copy.deepcopy(classifier.model), config)  # which leaves its network in eval mode
    run_dir = run_folder(config, manifest, total_steps=classifier.total_steps if fitted is None else None)
    with exit_when_asked(), ranks_together(batches.num_devices if fitted is None else 1):
        logger = None
        if fitted is None:
            logger = build_logger(config, run_dir)
            fitted = fit(data, classifier, run_dir=run_dir, logger=logger, callbacks=[InputImages()])
        hashes = {"weights_sha256": fitted.weights_sha256, "ema_sha256": fitted.ema_sha256}
        if warning := finish(run_dir, status=fitted.status, **hashes):
            print(warning, file=sys.stderr)
        if fitted.status == "complete":
            result = evaluate_run(config, manifest=manifest, checkpoint=fitted.checkpoint, out=run_dir / "predictions")
            if result is not None:  # on the first process
                experiments = collect([run_dir])
                rows = error_rows(experiments)
                print_table(rows)
                log_errors(logger, result)
                log_error_table(logger, COLUMNS, [row.cells for row in rows])
                write_report(experiments, run_dir)
        close_logger(logger)
    if is_first_process():
        print(f"{run_dir}: {fitted.message}", file=sys.stdout if fitted.exit_code == 0 else sys.stderr)
    return fitted.exit_code


if __name__ == "__main__":
    main()
