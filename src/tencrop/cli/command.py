"""Turns a function of a typed configuration into a command: runs Hydra, reports user errors in one sentence.

Exit codes: 0 done; 2 invalid input or a problem of the user's disk (one sentence on stderr); 75 interrupted and
resumable (Ctrl-C, in every command); 141 nobody reads the output (`| head`); 1 our own fault (a traceback).
"""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import hydra
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tencrop.cli.choices import CONF, check_conf, list_options, option_names
from tencrop.cli.command_line import PATHS, check_words, expand_home, multirun_first, read_flags
from tencrop.cli.config_source import register_config_source
from tencrop.cli.errors import hydra_error_sentence
from tencrop.cli.home import provide_cache_folder
from tencrop.cli.recipe_loader import register_recipe_loader
from tencrop.config.disk_errors import disk_sentence
from tencrop.config.documents import literal
from tencrop.config.launcher import launched
from tencrop.config.rules import validate
from tencrop.config.schema import Config, UserError
from tencrop.printable import print_any_text, printable
from tencrop.signals import INTERRUPTED, MESSAGE

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Schema = TypeVar("Schema", bound="DataclassInstance")


def command(config_name: str, schema: type[Schema]) -> Callable[[Callable[[Schema], int | None]], Callable[..., None]]:
    """Decorator that turns `run(config: schema) -> exit code` into main(), configured by conf/<config_name>.yaml.

    main(words) reads `words` instead of the arguments in sys.argv. sys.argv keeps what the user typed.
    """

    def decorate(run: Callable[[Schema], int | None]) -> Callable[..., None]:
        def main(words: list[str] | None = None) -> None:
            try:
                code = _exit_code(run, config_name, schema, sys.argv[1:] if words is None else words)
            except KeyboardInterrupt:
                code = interrupted()
            try:
                if sys.stdout is not None:  # it is None after >&-
                    sys.stdout.flush()
            except BrokenPipeError:
                _nobody_reads()  # drops the rest; else Python's own flush at exit would fail
            sys.exit(code)

        return main

    return decorate


def _exit_code(run: Callable[[Schema], int | None], config_name: str, schema: type[Schema], words: list[str]) -> int:
    exit_codes: list[int] = []  # one per job of a sweep; Hydra discards what the job returns
    arguments = sys.argv

    def job(node: DictConfig) -> None:
        # As typed: launching further ranks and recording the command read sys.argv.
        sys.argv = arguments
        exit_codes.append(_run_once(run, node, schema))
        if exit_codes[-1] == INTERRUPTED:
            sys.exit(INTERRUPTED)  # bypasses Hydra, which would start the next job of a sweep

    print_any_text()
    provide_cache_folder()
    # OpenMP threads wait by spinning, by default. If other processes share the cores, that makes a small network 50
    # times slower. Must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise exceptions rather than print them and exit
    OmegaConf.register_new_resolver("choices", option_names, replace=True)  # ${choices:...} in the help texts of conf/
    words = multirun_first(words)
    try:
        check_conf()
        _check_current_folder()
        answer = list_options(words, schema)
        if answer or {"--help", "-h"} & set(words):
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` exits quietly, as other tools do
            # Hydra would list the options of every group twice, which takes a third of the time of --help and which our
            # templates do not show (they use ${choices:}). --hydra-help shows them, and takes another path.
            Hydra.format_config_groups = lambda *_: ""  # type: ignore[method-assign]
        if answer:
            print(answer)
            return 0
        sys.argv = [arguments[0], *_words_for_hydra(words, schema)]  # hydra.main has no other way to pass arguments
        register_config_source()
        register_recipe_loader()
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
    except UserError as error:
        return _refuse(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return _refuse(hydra_error_sentence(error, schema))
    except OSError as error:  # from Hydra itself, which creates the folders of a sweep
        return _refuse(disk_sentence(error))
    finally:
        sys.argv = arguments
    return max(exit_codes, default=0)  # empty after --cfg, which prints the configuration and runs nothing


def _check_current_folder() -> None:
    """UserError where the folder that the shell is in was removed: nothing relative to it can be found or written."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError(
            "the current folder has been removed, or made anew; change to one that is there: cd DIR"
        ) from error


def _nobody_reads() -> bool:
    """Whether the reader of stdout has gone (`| head`); if so, the rest of the output is dropped."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # a pipe without a reader reports POLLERR without being asked
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def interrupted() -> int:
    """Print a message about the interruption on stderr; returns the exit code."""
    print(MESSAGE, file=sys.stderr)
    return INTERRUPTED


def _words_for_hydra(words: list[str], schema: type) -> list[str]:
    """The words in the form in which Hydra must read them.

    Raises UserError for a value that Hydra cannot parse, and for words to which argparse would answer with its usage.
    """
    values = read_flags(words).overrides
    read = dict(zip(values, check_words(values, schema), strict=True))
    return [read.get(word, word) for word in words]


def _run_once(run: Callable[[Schema], int | None], node: DictConfig, schema: type[Schema]) -> int:
    try:
        for key in PATHS:  # here too, for paths from YAML files and inside quotes or lists
            value = OmegaConf.select(node, key, throw_on_resolution_failure=False)
            value = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
            if expand_home(value) != value:
                OmegaConf.update(node, key, literal(expand_home(value)))
        config = validate(node, schema)
        _check_sweep(config)
        return run(config) or 0
    except UserError as error:
        return _refuse(str(error))
    except BrokenPipeError:
        if not _nobody_reads():  # of another connection
            raise
        return 128 + signal.SIGPIPE  # as a shell reports a program that the signal has ended
    except OSError as error:
        return _refuse(disk_sentence(error))
    except RuntimeError as error:  # before Python 3.13, Path.resolve raises this instead of OSError with ELOOP
        if not str(error).startswith("Symlink loop"):
            raise
        path = str(error).removeprefix("Symlink loop from ").strip("'")
        return _refuse(disk_sentence(OSError(errno.ELOOP, "", path)))


def _check_sweep(config: object) -> None:
    """Raise UserError for a sweep with several processes and no launcher.

    The ranks that training would start repeat the whole command line, so each of them would run the sweep.
    """
    sweeping = HydraConfig.get().mode == RunMode.MULTIRUN and launched() is None
    if sweeping and isinstance(config, Config) and config.hardware.devices > 1 and not config.plan:
        raise UserError(
            f"hardware.devices={config.hardware.devices} in a sweep (-m): start it under srun or torchrun,"
            " or give each run its own command"
        )


def overrides() -> list[str]:
    """The KEY=VALUE words that the user typed, without Hydra's own."""
    return list(HydraConfig.get().overrides.task)


def own_folders() -> list[Path]:
    """The user's own folders of configuration files, named by --config-dir or hydra.searchpath."""
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    # The provider is "command-line", or "hydra.searchpath in command-line".
    return [Path(source.path) for source in sources if source.provider.endswith("command-line")]


def _refuse(message: str) -> int:
    # other spaces stay: they may belong to a path
    line = printable(re.sub(r"\s*\n\s*", " ", message.strip()))
    print(f"error: {line}", file=sys.stderr)
    return 2
