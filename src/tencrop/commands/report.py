"""The command report: writes a page about runs and evaluations, or compares them with a table or with each other."""

import sys
from pathlib import Path

from tencrop.cli.command import command
from tencrop.config import ReportConfig, UserError
from tencrop.config.writable import check_writable
from tencrop.printable import printable
from tencrop.signals import close_at_ctrl_c


@command("report", ReportConfig)
def main(config: ReportConfig) -> int:
    _check(config)
    # Before the imports below: these tasks answer without torch, whose import takes seconds.
    if config.compare or config.diff or config.scores or config.labels:
        return _report_scores(config)
    if config.table is not None and config.plan:
        from tencrop.report.training_hours import report_hours

        close_at_ctrl_c()
        return report_hours(config.table, config.runs, Path(config.output))
    if config.table is not None:
        from tencrop.report.paper_tables import report_tables

        close_at_ctrl_c()
        return report_tables(config.table, config.runs, Path(config.output))

    output, remedy = Path(config.output), "make room, or name another folder with output=DIR"
    # Before the runs are read and the figures drawn, which may take minutes.
    check_writable(output / "report.html", output / "report.md", remedy=remedy)

    from tencrop.report.collect import Broken, collect, collect_evaluations, input_folders
    from tencrop.report.matching import match_runs
    from tencrop.report.page import write_report
    from tencrop.report.paper_tables import HASHES, show
    from tencrop.report.score_section import score_sections
    from tencrop.report.table_html import tables_with_runs
    from tencrop.report.tables import error_rows, print_table
    from tencrop.tables.reading import read_tables

    close_at_ctrl_c()
    paths = input_folders(config.runs)
    # One damaged folder must not hide the others: it is left out, reported, and reflected in the exit code.
    broken: list[Broken] = []
    experiments, evaluations = collect(paths, broken.append), collect_evaluations(paths, broken.append)
    if broken and not (experiments or evaluations):
        raise broken[0].error
    # Broken folders are in `broken` already: collect has read the same folders.
    matched = match_runs(tables := read_tables(), paths, kept=output / HASHES, on_broken=lambda _: None)
    scores = score_sections(experiments, evaluations, ks=config.k, on_broken=broken.append)
    papers = tables_with_runs(tables, matched)
    print_table(error_rows(experiments, evaluations), broken=broken)
    written = write_report(experiments, output, evaluations, broken=broken, scores=scores, paper_tables=papers)
    show([str(path) for path in written])
    for error in broken:
        print(printable(f"error: left out of the report: {error}"), file=sys.stderr)
    return 2 if broken else 0


def _report_scores(config: ReportConfig) -> int:
    """The tasks that read saved scores or records alone, and import no torch."""
    close_at_ctrl_c()
    output = Path(config.output)
    if config.compare:
        from tencrop.report.comparison_output import report_comparison

        return report_comparison(
            config.compare, average=config.average, ks=config.k, output=output, data_root=config.data_root
        )
    if config.diff:
        from tencrop.report.run_diff import report_difference

        return report_difference(config.diff, output=output)
    if config.labels:
        from tencrop.report.label_sets import report_label_sets

        return report_label_sets(
            config.labels,
            config.scores,
            average=config.average,
            ks=config.k,
            output=output,
            data_root=config.data_root,
        )
    from tencrop.report.score_output import report_scores

    return report_scores(config.scores, average=config.average, ks=config.k, output=output, data_root=config.data_root)


def _check(config: ReportConfig) -> None:
    tasks = {"table": config.table, "compare": config.compare, "diff": config.diff}
    # labels= counts the errors of scores=
    tasks["labels" if config.labels else "scores"] = config.labels or config.scores
    typed = [f"{name}=" for name, value in tasks.items() if value]
    if len(typed) > 1:
        raise UserError(f"{' and '.join(typed)}: one at a time; run report.py once for each")
    if config.plan and config.table in (None, "?"):
        raise UserError("plan=true: adds up the trainings of a table; name it with table=NAME, or all with table=all")
    # No k would give tables without rows, and an exit code of 0.
    if not config.k:
        raise UserError("k=[]: names no number; give k=[1,5]")
