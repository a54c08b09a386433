"""Train an experiment: python train.py experiment=NAME, or model=NAME for the default recipe. See --help.

Repeating the same command resumes the run, or shows its result if it is complete.
"""

from tencrop.signals import exit_at_once

if __name__ == "__main__":
    exit_at_once()  # before the import below, which takes seconds: a scheduler may send its signal meanwhile

from tencrop.commands.train import main

if __name__ == "__main__":
    main()
