"""Submit a training to SLURM: python submit.py experiment=NAME hardware=NAME. See --help."""

from signal import SIGINT

from tencrop.signals import exit_at_once

if __name__ == "__main__":
    exit_at_once(SIGINT)  # before the import below, which takes seconds: Ctrl-C would print a traceback

from tencrop.commands.submit import main

if __name__ == "__main__":
    main()
