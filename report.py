"""Write the report of runs: python report.py 'runs=[FOLDER,...]' output=DIR. --help tells more."""

from pathlib import Path

from tencrop.config import ReportConfig, command


@command("report", ReportConfig)
def main(config: ReportConfig) -> int:
    from tencrop.report.collect import collect, collect_evaluations, places
    from tencrop.report.page import write_report
    from tencrop.report.tables import error_rows, print_table

    paths = places(config.runs)
    experiments, evaluations = collect(paths), collect_evaluations(paths)
    print_table(error_rows(experiments, evaluations))
    for path in write_report(experiments, Path(config.output), evaluations):
        print(path)
    return 0


if __name__ == "__main__":
    main()
