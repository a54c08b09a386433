"""A mistake in a command is reported in one sentence, with exit code 2, before torch is imported."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tencrop.cli.command import command
from tencrop.config import Config, PrepareConfig
from tencrop.config.disk_errors import disk_sentence

ROOT = Path(__file__).parents[2]

MISTAKES = {
    "unknown key": (["training.epoch=3"], "training.epoch: there is no such key; did you mean training.epochs"),
    "unknown key, added": (["+training.foo=1"], "training.foo: there is no such key"),
    "entry of kwargs": (["model.kwargs.drop_rate=0.1"], "needs a plus sign: +model.kwargs.drop_rate=0.1"),
    "key of another variant": (["optimizer.betas=[0.9,0.99]"], "optimizer.betas: neither this command nor the chosen"),
    "wrong type": (["training.epochs=many"], "training.epochs=many: must be a whole number"),
    "misspelled option": (["model=resnet5O"], "did you mean resnet50"),
    "misspelled name": (["model=timm", "model.name=resnet5O"], "did you mean resnet50"),
    "no name": (["model=timm"], "model.name: needs a value"),
    "negative": (["optimizer.lr=-1"], "optimizer.lr=-1: must be above 0"),
    "batch that no device count divides": (["training.global_batch=257", "hardware=gpu8"], "257 / 8 = 32.12"),
    "group that does not fit": (["model.bn_group=48"], "model.bn_group=48: 256 / 1 devices"),
    "unprepared data": (["data.root=/nowhere"], "python prepare.py data=imagenet"),
    "sweep of several processes": (["-m", "seed=0,1", "hardware=ddp_cpu2"], "under srun or torchrun"),
    "machines without a launcher": (["hardware=nodes2x8"], "hardware.nodes=2: start it under srun or torchrun"),
    "sweep folder that is a file": (["-m", "seed=0,1", "hydra.sweep.dir=train.py"], "a file where a folder should be"),
    "no KEY=VALUE": (["resnet50"], "resnet50: cannot be read as KEY=VALUE; did you mean model=resnet50?"),
    "list without its end": (["protocol.side=[32"], "protocol.side=[32: cannot be read as KEY=VALUE"),
    "sweep without -m": (["seed=0,1"], "seed=0,1: several values are a sweep, which needs -m"),
    "mapping of kwargs": (["model.kwargs={width: 1}"], "needs a plus sign: +model.kwargs.width=VALUE"),
    "flag among the keys": (["seed=0", "-m", "training.epochs=0,0"], "training.epochs=0: must be above 0"),
    "not a number": (["optimizer.lr=nan"], "optimizer.lr=nan: must be a finite number"),
    "unknown flag": (["--foo"], "unrecognized arguments: --foo; type values as KEY=VALUE without dashes"),
    "folder of configurations": (["--config-path", "/no/such"], "Check that the config directory '/no/such' exists"),
    "wrong value of a flag": (["--cfg", "jobs"], "invalid choice: 'jobs'"),
    "key after a flag's value": (["seed=0", "--cfg", "job", "seed=1"], "flags such as --help after all values"),
    "no folder": (["runs="], "runs=: is empty"),
}


TYPING_ERRORS = {  # (command, word): a part of the message
    ("train", "lr=0.1"): "lr: there is no such key; did you mean optimizer.lr?",
    ("train", "hardware.lr=0.1"): "hardware.lr: there is no such key; did you mean optimizer.lr?",
    ("train", "batch_size=256"): "batch_size: there is no such key; did you mean training.global_batch?",
    ("train", "arch=resnet50"): "did you mean model?",
    ("train", "experiment=conf/experiment/lenet5_digits.yaml"): "not a file or folder; type experiment=lenet5_digits",
    ("train", "data=/data/imagenet"): "not a file or folder; type data=imagenet, and give the folder as data.root=",
    ("train", "hydra.foo=1"): "hydra.foo: Hydra has no such key",
    ("train", "hydra/launcher=nothing"): "hydra/launcher=nothing: Hydra has no option of this name",
    ("train", "hardware=8"): "hardware=8: hardware is a name; hardware=? lists the options",
    ("train", "+experiment=lenet5_digits"): "leave the plus sign out: experiment=lenet5_digits",
    ("train", "data=digits,imagenet"): "several values are a sweep, which needs -m; choose one of them",
    ("train", "data.root=a,b"): "one text is typed as \"data.root='a,b'\"",
    ("train", "training.epochs=[1]"): "training.epochs=[1]: must be a whole number",
    ("train", "training.max_steps=x"): "training.max_steps=x: must be a whole number above 0 or null",
    ("train", "schedule.milestones=30"): "schedule.milestones=30: must be a list [A,B,...] of numbers above 0",
    ("train", "augmentation.pca=3"): "holds several keys; give one of them a value: augmentation.pca.std",
    ("train", "data.root=${nope}"): "correct the name in ${...}, or type \\${...}",
    ("train", "tracker=csv"): "tracker=csv: the CSV tracker was removed; set tracker=none and read metrics.jsonl",
    ("train", "tracker.name=csv"): "tracker.name=csv: the CSV tracker was removed; set tracker=none",
    ("prepare", "training.epochs=3"): "training.epochs: neither this command nor the chosen groups use it",
    ("prepare", "verify=maybe"): "verify=maybe: must be true or false",
}
SCHEMAS = {"train": Config, "prepare": PrepareConfig}


@pytest.mark.parametrize(("name", "word"), TYPING_ERRORS)
def test_a_typing_error_is_answered_with_a_suggestion(name, word, capsys):
    with pytest.raises(SystemExit) as stop:
        command(name, SCHEMAS[name])(lambda config: None)([word])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and TYPING_ERRORS[name, word] in said and said.count("\n") == 1, said


def run(*arguments: str, script: str = "train.py") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_sentence_and_exit_code_2(mistake):
    arguments, words = MISTAKES[mistake]
    result = run(*arguments)
    assert result.returncode == 2, result.stderr
    lines = set(result.stderr.strip().splitlines())
    assert len(lines) == 1 and words in lines.pop(), result.stderr


def test_a_mistake_is_reported_before_torch_is_imported():
    program = (
        "import sys; sys.argv = ['train.py', 'training.epoch=3']\n"
        "import runpy\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 2, stop.code\n"
        "assert not {'torch', 'timm'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize(
    "script", ["prepare.py", "train.py", "evaluate.py", "export.py", "report.py", "doctor.py", "submit.py"]
)
def test_help_shows_examples_and_keys(script):
    result = run("--help", script=script)
    assert result.returncode == 0, result.stderr
    assert f"python {script}" in result.stdout and "Exit codes" in result.stdout


def test_cfg_job_prints_the_composed_configuration():
    result = run("model=resnet50", "--cfg", "job")
    assert result.returncode == 0 and "experiment: resnet50" in result.stdout


SWEEP = """
import sys
from tencrop.config import Config
from tencrop.cli.command import command

@command("train", Config)
def main(config):
    print(config.seed)
    return 75 if config.seed == 1 else 0

sys.argv = ["train.py", "-m", "experiment=lenet5_digits", "seed=0,1,2", "hydra.sweep.dir=" + sys.argv[1]]
main()
"""


def test_an_interrupted_run_ends_its_sweep(tmp_path):
    command = [sys.executable, "-c", SWEEP, str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 75, result.stderr
    assert result.stdout.split() == ["0", "1"]


def test_a_sweep_on_a_full_disk_fails_with_one_sentence(small_disk):
    with pytest.raises(OSError, match="No space"), open(small_disk / "full", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    result = run("-m", "seed=0,1", f"hydra.sweep.dir={small_disk}/sweep")
    assert result.returncode == 2 and result.stderr.startswith("error: the disk is full"), result.stderr


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ELOOP, "symbolic links form a loop (/a); remove the link"),
        (errno.EIO, "dmesg shows details"),
        (errno.ESTALE, "stale file handle"),
        (errno.EMFILE, "raise the limit (ulimit -n"),
        (errno.ENOSPC, "the disk is full (/a); make room"),
    ],
)
def test_each_disk_error_has_its_own_remedy(number, words):
    text = disk_sentence(OSError(number, "", "/a"))
    assert words in text and "\n" not in text and ("make room" in text) == (number == errno.ENOSPC)


def test_other_os_errors_are_raised_again():
    with pytest.raises(OSError, match="Broken pipe"):
        disk_sentence(BrokenPipeError(errno.EPIPE, "Broken pipe"))


def test_a_path_through_a_loop_of_links_is_truncated():
    assert len(disk_sentence(OSError(errno.ELOOP, "", "/a/up" * 40_000))) < 400


def test_a_loop_of_links_is_reported_in_one_sentence(photo_folder, tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    result = run("data=imagefolder", f"data.source={photo_folder}", f"data.root={tmp_path}/a", script="prepare.py")
    assert result.returncode == 2, result.stderr
    reason = "symbolic links form a loop"
    words = f"error: {tmp_path}/a/manifest.json: cannot be written ({reason}); remove the link"
    assert result.stderr.startswith(words), result.stderr


def test_a_folder_with_a_link_to_its_parent_is_reported_in_one_sentence(photo_folder, tmp_path):
    shutil.copytree(photo_folder, tmp_path / "source")
    (tmp_path / "source" / "train" / "china" / "up").symlink_to("..")
    arguments = (f"data.source={tmp_path}/source", f"data.root={tmp_path}/prepared")
    result = run("data=imagefolder", *arguments, script="prepare.py")
    assert result.returncode == 2 and result.stderr.startswith("error: symbolic links form a loop"), result.stderr


def test_a_current_folder_that_was_removed_is_named(tmp_path):
    (tmp_path / "gone").mkdir()
    text = f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && exec {sys.executable} {ROOT}/train.py model=lenet5"
    result = subprocess.run(["sh", "-c", text], capture_output=True, text=True, timeout=900)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: the current folder has been removed"), result.stderr


PRINTS = """
import sys
from tencrop.cli.command import command
from tencrop.config import PrepareConfig
def run(config):
    print("first", flush=True)
    sys.stdin.read()  # until the reader of stdout has gone
    for number in range({lines}):
        print(number)
    if {lines} < 0:
        raise BrokenPipeError(32, "of a connection")
    return 2
command("prepare", PrepareConfig)(run)([])
"""


@pytest.mark.parametrize(("lines", "code"), [(1, 2), (100_000, 141)], ids=["at the end", "in the middle"])
def test_a_reader_of_the_output_may_stop_early(lines, code):
    """`report.py | head`: no traceback. The exit code stays if the work was done."""
    assert _after_the_first_line(PRINTS.format(lines=lines), closed=True) == (code, "")


def test_another_broken_connection_is_not_hidden():
    code, said = _after_the_first_line(PRINTS.format(lines=-1), closed=False)
    assert code == 1 and "BrokenPipeError: [Errno 32] of a connection" in said


def _after_the_first_line(program: str, *, closed: bool) -> tuple[int, str]:
    """Exit code and stderr of a program; the reader of its stdout may close it before the program's stdin ends."""
    pipe, buffered = subprocess.PIPE, os.environ | {"PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=buffered, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "first\n"
        if closed:
            process.stdout.close()
        process.stdin.close()
        said = process.stderr.read()
    return process.returncode, said
