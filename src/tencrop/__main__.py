"""The command `tencrop VERB KEY=VALUE ...` of an installed package: the same verbs as the scripts of a checkout."""

from __future__ import annotations

import signal
import sys
from importlib import import_module

import tencrop
from tencrop.signals import exit_at_once

VERBS = {
    "prepare": ("tencrop.commands.prepare", "write a data set once"),
    "train": ("tencrop.commands.train", "train an experiment, continue it, or show its result"),
    "evaluate": ("tencrop.commands.evaluate", "evaluate trained weights under a test protocol"),
    "report": ("tencrop.commands.report", "one page for one run or many, with the papers' numbers"),
    "complexity": ("tencrop.complexity.__main__", "parameters and multiply-adds, layer by layer"),
    "visualization": ("tencrop.visualization.__main__", "draw a network and what it sees"),
    "reproduce": ("tencrop.records.reproduce", "run a folder again and compare the weights"),
}
HELP = "\n".join(
    [
        "From a configuration to an error table of an ImageNet paper: tencrop VERB KEY=VALUE ...",
        "",
        *(f"  tencrop {verb:<15}{what}" for verb, (_, what) in VERBS.items()),
        "",
        "tencrop VERB --help says what a verb takes; what it says of `python VERB.py` holds for `tencrop VERB`.",
    ]
)


def main() -> None:
    """The command line."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("--help", "-h"):
        print(HELP)
    elif verb == "--version":
        print(tencrop.__version__)
    elif verb not in VERBS:
        print(f"error: {verb}: there is no such verb; there are {', '.join(VERBS)}", file=sys.stderr)
        sys.exit(2)
    else:
        # before imports that take seconds; a scheduler may send its signal to a training meanwhile
        exit_at_once(*([] if verb == "train" else [signal.SIGINT]))
        sys.exit(import_module(VERBS[verb][0]).main(sys.argv[2:]))


if __name__ == "__main__":
    main()
