"""The installed program `tencrop COMMAND KEY=VALUE ...`, which offers the scripts of a checkout as commands."""

from __future__ import annotations

import signal

from tencrop.signals import exit_at_once

if __name__ == "__main__":
    exit_at_once(signal.SIGINT)  # before all other imports

import sys
from importlib import import_module

import tencrop

# Modules by name, imported only when chosen, to keep `tencrop --help` fast.
COMMANDS = {
    "prepare": ("tencrop.commands.prepare", "convert a data set for training, once"),
    "train": ("tencrop.commands.train", "train an experiment, resume it, or show its result"),
    "evaluate": ("tencrop.commands.evaluate", "evaluate trained weights under a test protocol"),
    "export": ("tencrop.commands.export", "write a trained network for use elsewhere, with a model card"),
    "report": ("tencrop.commands.report", "write one page about one run or many, with the papers' numbers"),
    "doctor": ("tencrop.commands.doctor", "examine the machine or the nodes of a job before the first training"),
    "submit": ("tencrop.commands.submit", "submit a training, or the missing runs of a table, to SLURM"),
    "complexity": ("tencrop.complexity.__main__", "count parameters and multiply-adds, layer by layer"),
    "visualization": ("tencrop.visualization.__main__", "draw a network and what its units respond to"),
    "planning": ("tencrop.planning.__main__", "estimate the speed on many GPUs from a step on one"),
    "reproduce": ("tencrop.records.reproduce", "repeat a finished run and compare the weights bit for bit"),
}
HELP = "\n".join(
    [
        "Reproduce the error tables of ImageNet papers from configuration files: tencrop COMMAND KEY=VALUE ...",
        "",
        *(f"  tencrop {name:<15}{summary}" for name, (_, summary) in COMMANDS.items()),
        "",
        "tencrop COMMAND --help lists its keys. Examples there that begin with `python COMMAND.py` work as",
        "`tencrop COMMAND`, too.",
    ]
)


def main() -> None:
    """Entry point of the installed program."""
    # No argparse: everything after the command belongs to Hydra, including --help.
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("--help", "-h"):
        print(HELP)
    elif command == "--version":
        print(tencrop.__version__)
    elif command not in COMMANDS:
        print(f"error: {command}: there is no such command; choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    else:
        # Before the import, which takes seconds: without a handler, a scheduler's SIGUSR1 would kill a job that should
        # be requeued. Only train needs handlers of SIGTERM and SIGUSR1 this early.
        exit_at_once(*([] if command == "train" else [signal.SIGINT]))
        # Each main() accepts its own arguments, since sys.argv still contains the command's name.
        sys.exit(import_module(COMMANDS[command][0]).main(sys.argv[2:]))


if __name__ == "__main__":
    main()
