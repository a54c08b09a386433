"""Write the report of runs: python report.py 'runs=[FOLDER,...]' output=DIR. --help tells more."""

import sys
from pathlib import Path
from signal import SIGINT

from tencrop.signals import close_at_ctrl_c, exit_at_once

if __name__ == "__main__":
    exit_at_once(SIGINT)  # before the imports below

from tencrop.config import ReportConfig, UserError, command


@command("report", ReportConfig)
def main(config: ReportConfig) -> int:
    from tencrop.report.collect import collect, collect_evaluations, places
    from tencrop.report.page import write_report
    from tencrop.report.tables import error_rows, print_table

    close_at_ctrl_c()
    paths = places(config.runs)
    broken: list[UserError] = []
    experiments, evaluations = collect(paths, broken.append), collect_evaluations(paths, broken.append)
    if broken and not (experiments or evaluations):
        raise broken[0]
    print_table(error_rows(experiments, evaluations))
    for path in write_report(experiments, Path(config.output), evaluations):
        print(path)
    for error in broken:
        print(f"error: left out of the report: {error}", file=sys.stderr)
    return 2 if broken else 0


if __name__ == "__main__":
    main()
