"""Prepare a data set for training, once: python prepare.py data=imagenet data.source=DIR data.root=DIR.

conf/data lists the data sets; --help shows more examples. The work is done in src/tencrop/data/preparation.
"""

from signal import SIGINT

from tencrop.signals import exit_at_once

if __name__ == "__main__":
    exit_at_once(SIGINT)  # before the import below, which takes seconds: Ctrl-C would print a traceback

from tencrop.commands.prepare import main

if __name__ == "__main__":
    main()
