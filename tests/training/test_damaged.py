"""A run with a damaged or foreign last checkpoint resumes from the previous one, reports it, and ends the same."""

import json
import runpy
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from tencrop.models.checkpoint_files import weights_sha256, with_prefix
from tencrop.training.checkpoints import AtomicCheckpointIO, read_checkpoint
from typed import present

ROOT = Path(__file__).parents[2]


def damage(path) -> None:
    """Flip a bit in the middle of a file, but not in another hard link to it (previous.ckpt)."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(
    "fault", [{"signal_number": signal.SIGTERM, "at_step": 8}, None], ids=["interrupted", "complete"]
)
def test_a_run_with_a_damaged_last_checkpoint_ends_like_an_undisturbed_one(train, uninterrupted, fault):
    run = train("run", "checkpoint_every_steps=2", fault=fault)
    damage(run.last)
    run = train("run", "checkpoint_every_steps=2")
    assert run.exit_code == 0 and run.result()["message"] == "complete"
    for key in ("weights_sha256", "ema_sha256"):
        assert run.result()[key] == uninterrupted.result()[key]
    assert run.rows() == uninterrupted.rows()
    names = ["best.ckpt", "last.ckpt", "previous.ckpt", "refused.ckpt"]
    assert sorted(path.name for path in run.last.parent.iterdir()) == names


def test_all_ranks_resume_from_the_same_checkpoint(train):
    """Rank 0 renames the damaged file while the other rank may be reading it."""
    options = ["hardware.devices=2", "hardware.max_micro_batch=null", "model.bn_group=3", "training.epochs=2"]
    options += ["checkpoint_every_steps=2"]
    whole = train("whole", *options, num_ranks=2)
    damage(whole.last)
    run = train("whole", *options, num_ranks=2)
    assert whole.exit_codes == run.exit_codes == [0, 0]
    assert run.result(0)["message"] == "complete"
    facts = read_checkpoint(run.last)["tencrop"]
    assert {run.result(rank)["weights_sha256"] for rank in (0, 1)} == {facts["weights_sha256"]}
    refused = torch.load(run.last.with_name("refused.ckpt"), weights_only=True)["tencrop"]
    assert refused["weights_sha256"] == facts["weights_sha256"], "as the damaged one said"


@pytest.fixture
def train_command(prepared_digits, tmp_path, monkeypatch, capsys):
    """train_command("seed=1"): train.py on the digits for 6 steps; returns its exit code and stderr."""
    monkeypatch.chdir(tmp_path)
    words = ["experiment=lenet5_digits", f"data.root={prepared_digits}", "training.max_steps=6", "hardware=cpu"]
    words += ["hardware.workers=1", "checkpoint_every_steps=3", "tracker=none", f"runs={tmp_path}/runs"]

    def run(*overrides: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *words, *overrides])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        torch.use_deterministic_algorithms(False)
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().err

    return run


def test_a_complete_run_with_a_damaged_or_foreign_checkpoint(train_command, tmp_path):
    """With a damaged checkpoint it resumes from previous.ckpt to the same weights; that of another seed is refused."""
    for seed in (0, 1):
        assert train_command(f"seed={seed}")[0] == 0
    first, second = sorted((tmp_path / "runs" / "lenet5_digits").iterdir())
    ended = json.loads((first / "manifest.json").read_text())
    last = first / "checkpoints" / "last.ckpt"

    damage(last)
    exit_code, errors = train_command("seed=0")
    (line,) = [line for line in errors.splitlines() if "last.ckpt" in line]
    assert exit_code == 0 and "is damaged" in line and line.endswith("resuming from previous.ckpt (step 3 of 6)")
    manifest = json.loads((first / "manifest.json").read_text())
    for result in (manifest["result"], ended["result"]):
        assert result.pop("metrics_digest")  # the rows are new: their images_per_s are others
    assert manifest["result"] == ended["result"] and len(manifest["sessions"]) == 2

    for name in ("last.ckpt", "previous.ckpt"):
        shutil.copy(second / "checkpoints" / name, first / "checkpoints" / name)
    manifest = (first / "manifest.json").read_text()
    exit_code, errors = train_command("seed=0")
    assert exit_code == 2 and errors.count("\n") == 1 and "last.ckpt: is of another run: its seed is 1" in errors
    assert (first / "manifest.json").read_text() == manifest


def test_a_complete_run_refuses_its_own_earlier_weights(train_command, tmp_path):
    """A valid, complete checkpoint of the same run, such as a copy from before it was trained again."""
    assert train_command("seed=0")[0] == 0
    (run_dir,) = (tmp_path / "runs" / "lenet5_digits").iterdir()
    ended = json.loads((run_dir / "manifest.json").read_text())["result"]
    last = run_dir / "checkpoints" / "last.ckpt"
    other = read_checkpoint(last)
    weights = present(with_prefix(other["state_dict"], "model."))
    next(iter(weights.values())).add_(1.0)
    other["tencrop"]["weights_sha256"] = weights_sha256(weights)
    AtomicCheckpointIO().save_checkpoint(other, run_dir / "other.ckpt")
    (run_dir / "other.ckpt").replace(last)

    exit_code, errors = train_command("seed=0")
    (line,) = [line for line in errors.splitlines() if "last.ckpt" in line]
    assert exit_code == 0 and "is of another run: its weights_sha256" in line
    result = json.loads((run_dir / "manifest.json").read_text())["result"]
    assert result["weights_sha256"] == ended["weights_sha256"] and "ended_with" not in result
