"""Write a data set once: python prepare.py data=imagenet data.source=DIR data.root=DIR (data=imagefolder, digits, ...).

Reads conf/prepare.yaml; the work is in src/tencrop/data/preparation/prepare.py, verify.py and simulate.py.
"""

from signal import SIGINT

from tencrop.signals import exit_at_once

if __name__ == "__main__":
    exit_at_once(SIGINT)  # before the import below

from tencrop.commands.prepare import main

if __name__ == "__main__":
    main()
