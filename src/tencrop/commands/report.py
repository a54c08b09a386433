"""The command report: writes a page about runs and evaluations, or compares them with a paper's table."""

import sys
from pathlib import Path

from tencrop.cli.command import command
from tencrop.config import ReportConfig
from tencrop.config.writable import check_writable
from tencrop.printable import printable
from tencrop.signals import close_at_ctrl_c


@command("report", ReportConfig)
def main(config: ReportConfig) -> int:
    if config.table is not None:
        from tencrop.report.paper_tables import report_tables

        close_at_ctrl_c()
        return report_tables(config.table, config.runs, Path(config.output))

    output, remedy = Path(config.output), "make room, or name another folder with output=DIR"
    check_writable(output / "report.html", output / "report.md", remedy=remedy)

    from tencrop.report.collect import Broken, collect, collect_evaluations, input_folders
    from tencrop.report.page import write_report
    from tencrop.report.tables import error_rows, print_table

    close_at_ctrl_c()
    paths = input_folders(config.runs)
    # One damaged folder must not hide the others: it is left out, reported, and reflected in the exit code.
    broken: list[Broken] = []
    experiments, evaluations = collect(paths, broken.append), collect_evaluations(paths, broken.append)
    if broken and not (experiments or evaluations):
        raise broken[0].error
    print_table(error_rows(experiments, evaluations), broken=broken)
    for path in write_report(experiments, output, evaluations, broken=broken):
        print(path)
    for error in broken:
        print(printable(f"error: left out of the report: {error}"), file=sys.stderr)
    return 2 if broken else 0
