"""A signal never decides what it should not: 75 at start-up, the run's own exit code when it has ended."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

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
