"""Write the report of runs: python report.py 'runs=[FOLDER,...]' output=DIR. --help tells more."""

from signal import SIGINT

from tencrop.signals import exit_at_once

if __name__ == "__main__":
    exit_at_once(SIGINT)  # before the import below

from tencrop.commands.report import main

if __name__ == "__main__":
    main()
