"""Write the report of runs: python report.py runs=[FOLDER,...] output=DIR. --help tells more."""

from pathlib import Path

from tencrop.config import ReportConfig, command


@command("report", ReportConfig)
def main(config: ReportConfig) -> int:
    from tencrop.report.collect import collect
    from tencrop.report.page import write_report
    from tencrop.report.tables import error_rows, print_table

    experiments = collect(Path(path) for path in config.runs)
    print_table(error_rows(experiments))
    for path in write_report(experiments, Path(config.output)):
        print(path)
    return 0


if __name__ == "__main__":
    main()
