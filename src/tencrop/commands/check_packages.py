"""Compares the packages of a job that submit.py submitted with those at submission; slurm/environment.sh calls it.

    python -m tencrop.commands.check_packages packages.json

Exit codes: 0 run the job, 2 do not. A snapshot has the code but only a link to the environment, which may be upgraded
while the job waits.
"""

from __future__ import annotations

from signal import SIGINT

from tencrop.signals import exit_at_once

if __name__ == "__main__":
    exit_at_once(SIGINT)  # before the imports below, as in the other programs

import sys
from collections.abc import Mapping
from pathlib import Path

from tencrop.config import UserError
from tencrop.config.documents import read_json
from tencrop.records.provenance import EXACT, installed_packages


def check_packages(submitted: Mapping[str, str], installed: Mapping[str, str]) -> str | None:
    """A warning that names packages changed since the submission; None if none has changed.

    Raises UserError if one of EXACT has changed: the weights would be other ones than those of the other seeds of an
    array, or of the run's steps before a requeue. Resuming by hand only prints such a change (provenance.differences),
    because somebody reads it.
    """
    changed = [name for name in submitted if installed.get(name) != submitted[name]]
    text = "; ".join(f"{name} was {submitted[name]}, is {installed.get(name, 'not installed')}" for name in changed)
    if set(changed) & set(EXACT):
        raise UserError(
            f"the packages are not those of the submission ({text}); install those again, or submit again to run with"
            " what is installed"
        )
    return f"warning: packages have changed since the submission: {text}" if changed else None


def main() -> int:
    try:
        remedy = "submit again"
        submitted = read_json(Path(sys.argv[1]), {str: str}, what="the packages at submission", remedy=remedy)
        if warning := check_packages(submitted, installed_packages()):
            print(warning, file=sys.stderr)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
