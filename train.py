"""Train an experiment: python train.py experiment=NAME, or model=NAME for the default recipe. --help tells more.

The same command typed again continues where the run stands, or shows its result.
"""

from tencrop.signals import exit_at_once

if __name__ == "__main__":
    exit_at_once()  # before the import below, which takes seconds in which a scheduler may send its signal

from tencrop.commands.train import main

if __name__ == "__main__":
    main()
