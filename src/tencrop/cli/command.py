"""Turns a function of a typed configuration into a verb: Hydra, sentences for mistakes, exit codes.

Called by tencrop.commands and by what runs with python -m. Exit codes: 0 done, 2 the user's input (one
sentence on stderr), 75 interrupted and resumable (Ctrl-C, in every verb), 1 our fault (with its traceback).
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tencrop.cli.choices import CONF, asked, check_conf, names_of
from tencrop.cli.command_line import PATHS, checked, home
from tencrop.cli.config_source import (
    register_config_source,
)
from tencrop.cli.errors import sentence
from tencrop.config.disk_errors import disk_sentence
from tencrop.config.documents import literal
from tencrop.config.launcher import launched
from tencrop.config.rules import validate
from tencrop.config.schema import Config, UserError
from tencrop.printable import print_any_text, printable
from tencrop.signals import INTERRUPTED, MESSAGE


def command(config_name: str, schema: type) -> Callable[[Callable[[Any], int | None]], Callable[..., None]]:
    """Decorator: `run(config: schema) -> exit code` becomes a script's main, configured by conf/<config_name>.yaml.

    main(words) reads other words than those behind the script's name; sys.argv stays what was typed.
    """

    def decorate(run: Callable[[Any], int | None]) -> Callable[..., None]:
        def main(words: list[str] | None = None) -> None:
            try:
                sys.exit(_exit_code(run, config_name, schema, sys.argv[1:] if words is None else words))
            except KeyboardInterrupt:
                sys.exit(interrupted())

        return main

    return decorate


def _exit_code(run: Callable[[Any], int | None], config_name: str, schema: type, words: list[str]) -> int:
    exit_codes: list[int] = []
    arguments = sys.argv

    def job(node: DictConfig) -> None:
        sys.argv = arguments  # as typed: what starts this command again, or records it, reads them
        exit_codes.append(_run_once(run, node, schema))
        if exit_codes[-1] == INTERRUPTED:
            sys.exit(INTERRUPTED)  # past Hydra, which would start the next job of a sweep

    print_any_text()
    # Threads of torch's that wait by spinning make a small network 50 times slower where cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through, for the sentences below
    OmegaConf.register_new_resolver("choices", names_of, replace=True)  # the help texts use it
    # argparse, behind Hydra, takes no KEY=VALUE after a flag that stands among them
    words = sorted(words, key=lambda word: word not in ("-m", "--multirun"))
    try:
        check_conf()
        _check_current_folder()
        answer = asked(words)
        if answer or {"--help", "-h"} & set(words):
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends them quietly, like other tools
        if answer:
            print(answer)
            return 0
        sys.argv = [arguments[0], *_checked(words, schema)]  # which Hydra reads
        register_config_source()
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
    except UserError as error:
        return _refuse(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return _refuse(sentence(error, schema))
    except OSError as error:  # Hydra's own: it makes the folders of a sweep
        return _refuse(disk_sentence(error))
    finally:
        sys.argv = arguments
    return max(exit_codes, default=0)


def _check_current_folder() -> None:
    """UserError where the folder that the shell is in was removed: nothing relative to it can be found or written."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError(
            "the current folder has been removed, or made anew; change to one that is there: cd DIR"
        ) from error


def interrupted() -> int:
    """Says so, once, on stderr; the exit code."""
    print(MESSAGE, file=sys.stderr)
    return INTERRUPTED


def _checked(words: list[str], schema: type) -> list[str]:
    """The words as Hydra is to read them; UserError for what argparse, behind Hydra, would answer with its usage, and
    for a value that Hydra cannot read."""

    def refuse(message: str) -> NoReturn:
        raise UserError(
            f"{message}; a value is KEY=VALUE without dashes, and flags such as --help stand behind all values"
        )

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    values = parser.parse_args(words).overrides
    read = dict(zip(values, checked(values, schema), strict=True))
    return [read.get(word, word) for word in words]


def _run_once(run: Callable[[Any], int | None], node: DictConfig, schema: type) -> int:
    try:
        for key in PATHS:
            value = OmegaConf.select(node, key, throw_on_resolution_failure=False)
            value = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
            if home(value) != value:
                OmegaConf.update(node, key, literal(home(value)))
        config: Any = validate(node, schema)
        _check_sweep(config)
        return run(config) or 0
    except UserError as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(disk_sentence(error))
    except RuntimeError as error:  # Path.resolve, until Python 3.13, of what is ELOOP to the system
        if not str(error).startswith("Symlink loop"):
            raise
        place = str(error).removeprefix("Symlink loop from ").strip("'")
        return _refuse(disk_sentence(OSError(errno.ELOOP, "", place)))


def _check_sweep(config: Any) -> None:
    """Several processes in a sweep need a launcher: those that training starts would be handed `-m`."""
    sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
    if sweeping and launched() is None and isinstance(config, Config) and config.hardware.devices > 1:
        raise UserError(
            f"hardware.devices={config.hardware.devices} in a sweep (-m): start it under srun or torchrun,"
            " or give each run its own command"
        )


def overrides() -> list[str]:
    """What the user typed behind the verb, as KEY=VALUE."""
    return list(HydraConfig.get().overrides.task)


def _refuse(message: str) -> int:
    line = printable(re.sub(r"\s*\n\s*", " ", message.strip()))  # other spaces may be a path's
    print(f"error: {line}", file=sys.stderr)
    return 2
