"""Write the report of runs: python report.py 'runs=[FOLDER,...]' output=DIR. --help tells more."""

from tencrop.commands.report import main

if __name__ == "__main__":
    main()
