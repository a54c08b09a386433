"""Signals give exit code 75 at start-up and do not change the exit code of a finished run.

Ctrl-C ends every command with one line.
"""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tencrop.commands.evaluate import evaluate_and_track
from tencrop.data.store.manifest import open_split
from tencrop.evaluation import evaluate as evaluation
from tencrop.signals import SIGNALS, exit_at_once, exit_when_asked

ROOT = Path(__file__).parents[1]

# runs train.py and sends itself a signal the moment a module is imported
AT_IMPORT = """
import os, runpy, sys
module, number = sys.argv[1], int(sys.argv[2])

class Signal:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), number)

sys.meta_path.insert(0, Signal())
sys.argv[:] = ["train.py", "experiment=lenet5_digits", *sys.argv[3:]]
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("module", ["hydra", "torch", "pytorch_lightning"])
def test_a_signal_while_python_imports_ends_with_75(prepared_digits, tmp_path, module, number):
    words = [f"data.root={prepared_digits}", f"runs={tmp_path}/runs", "tracker=none"]
    command = [sys.executable, "-c", AT_IMPORT, module, str(int(number)), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (75, "interrupted; the same command continues\n")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_after_the_end_changes_nothing(number):
    with exit_when_asked(is_first=True):
        pass
    os.kill(os.getpid(), number)
    exit_at_once()  # the next run of a sweep
    assert callable(signal.getsignal(number))


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_within_the_block_raises_75(number, is_first, capsys):
    with pytest.raises(SystemExit, match="75"), exit_when_asked(is_first=is_first):
        os.kill(os.getpid(), number)
    assert capsys.readouterr().err == ("interrupted; the same command continues\n" if is_first else "")


# Runs a command in another process and sends Ctrl-C when a given module is imported, or a function of it is called.
AT = """
import os, runpy, signal, sys
module, function = sys.argv[1].split(":")

class Interrupt:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

if function:
    import importlib
    owner, _, name = f"{module}.{function}".rpartition(".")
    try:
        owner = importlib.import_module(owner)
    except ModuleNotFoundError:
        owner = getattr(importlib.import_module(owner.rpartition(".")[0]), owner.rpartition(".")[2])
    before = getattr(owner, name)

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return before(*arguments, **options)

    setattr(owner, name, interrupted)
else:
    sys.meta_path.insert(0, Interrupt())
program, sys.argv = sys.argv[2], sys.argv[2:]
if program.endswith(".py"):
    runpy.run_path(program, run_name="__main__")
else:
    runpy.run_module(program, run_name="__main__", alter_sys=True)
"""
COMMANDS = {
    "start of prepare": ("hydra:", "prepare.py", []),
    "start of evaluate": ("hydra:", "evaluate.py", []),
    "start of report": ("hydra:", "report.py", []),
    "start of visualization": ("hydra:", "tencrop.visualization", []),
    "start of complexity": ("hydra:", "tencrop.complexity", []),
    "start of planning": ("hydra:", "tencrop.planning", []),
    "start of the race": ("hydra:", "tencrop.report.training_error", []),
    "start of reproduce": ("omegaconf:", "tencrop.records.reproduce", ["nowhere"]),
    "first import of reproduce": ("argparse:", "tencrop.records.reproduce", ["nowhere"]),
    "start of the list of names": ("timm:", "tencrop.models.names", []),
    "start of the golden counts": ("torch:", "tencrop.complexity.golden", []),
    "configuration": ("tencrop.cli.command:validate", "report.py", []),
    "report": ("tencrop.report.collect:collect", "report.py", ["runs=[nowhere]"]),
    "counting": ("tencrop.complexity.networks:complexity_of", "tencrop.complexity", ["model=lenet5"]),
}


def interrupt(place: str, program: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", AT, place, program, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


# seeing.py prints one line and exits
PROGRAMS = [
    path
    for path in (*ROOT.glob("*.py"), *(ROOT / "src").rglob("*.py"))
    if 'if __name__ == "__main__":' in path.read_text() and path.name != "seeing.py"
]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_program_handles_ctrl_c_before_its_other_imports(path):
    """Ctrl-C during any earlier import prints a traceback."""
    body = ast.parse(path.read_text()).body
    number = next(number for number, node in enumerate(body) if isinstance(node, ast.If))
    assert "exit_at_once(" in ast.unparse(body[number])
    before = body[:number]
    imported = {alias.name for node in before if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in before if isinstance(node, ast.ImportFrom)}
    assert imported <= {"__future__", "signal", "tencrop.signals"}


@pytest.mark.parametrize("case", COMMANDS)
def test_ctrl_c_ends_a_command_with_one_line(case):
    place, program, words = COMMANDS[case]
    done = interrupt(place, program, *words)
    assert (done.returncode, done.stderr) == (75, "interrupted; the same command continues\n"), done.stdout


def test_sigterm_ends_an_evaluation_like_ctrl_c(monkeypatch):
    """A scheduler sends it before it ends or requeues a job."""
    monkeypatch.setattr(evaluation, "evaluate_targets", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        evaluate_and_track([])


@pytest.mark.parametrize(
    "place", ["tencrop.data.preparation.writer:write_part", "tencrop.data.store.beton:BetonWriter.finish"]
)
def test_ctrl_c_while_data_are_prepared_leaves_what_the_same_command_continues(place, photo_folder, tmp_path):
    words = ["data=imagefolder", f"data.source={photo_folder}", f"data.root={tmp_path}", "workers=2"]
    done = interrupt(place, "prepare.py", *words)
    assert done.returncode == 75 and done.stderr.endswith("interrupted; the same command continues\n"), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "manifest.json").exists()
    assert not list(tmp_path.glob("*.npy")) and not list(tmp_path.glob("*.beton"))
    again = subprocess.run([sys.executable, "prepare.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and open_split(tmp_path, "train").num_samples == 24, again.stderr
