"""evaluate.py table=NAME: evaluates the finished runs of a table's rows once, and lists what is missing."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tencrop.commands import evaluate_table as command
from tencrop.commands.evaluate_table import evaluate_table, sbatch_line
from tencrop.config import Config, EvaluateConfig, Hardware, UserError, run_path
from tencrop.data.store.manifest import read_manifest
from tencrop.models.checkpoint_files import run_manifest, weights_sha256
from tencrop.models.factory import build_model
from tencrop.records.run_folder import finish, run_folder
from tencrop.report.table_plan import protocol_overrides
from tencrop.tables.schema import RowProtocol
from tencrop.training.checkpoints import AtomicCheckpointIO
from tencrop.training.initial_weights import read_initial_weights

FIVE = {"name": "five_crop", "average": "logits"}
PROTOCOL = RowProtocol("dense", (36, 48), 32, "whole", "shorter_side", None, "softmax")
ROWS: list[dict[str, Any]] = [
    {"id": "one", "row": "LeNet-5", "top1": "2.0", "top5": "0.0", "experiment": "lenet5_digits"},
    {"id": "five", "row": "five crops", "top1": "2", "top5": "0", "experiment": "lenet5_digits", "protocol": FIVE},
    {"id": "two", "row": "2 LeNets", "top1": "1.8", "top5": "0.0", "members": [{"row": "one", "seeds": 2}]},
    {"id": "three", "row": "3 LeNets", "top1": "1.7", "top5": "0.0", "members": [{"row": "one", "seeds": 3}]},
    {"id": "cosine", "row": "slower", "top1": "1.7", "top5": "0.0", "overrides": ["model=resnet18"]},
    {"id": "labels", "row": "withheld", "top1": "1.7", "top5": "0.0", "cannot": "the labels are withheld"},
]  # fmt: skip


@pytest.fixture
def trained(composed: Callable[..., Config], prepared_digits: Path, tmp_path: Path) -> Callable[..., Config]:
    """trained(seed): a complete run of lenet5_digits whose weights are random, not yet evaluated."""

    def train(seed: int, *overrides: str) -> Config:
        place = [f"runs={tmp_path}/runs", f"data.root={prepared_digits}", "tracker=none", "hardware=cpu"]
        config = composed("experiment=lenet5_digits", f"seed={seed}", *place, *overrides)
        initial = read_initial_weights(config.training.init, run_path(config))
        folder = run_folder(config, read_manifest(config.data.root), init=initial and initial.facts)
        torch.manual_seed(seed)
        state = build_model(config.model, num_classes=10).state_dict()
        facts = {"seed": seed, "step": 7, "total_steps": 7, "mean": [20.0] * 3, "std": [200.0] * 3}
        facts |= {"model": config.model.name, "run_id": run_manifest(folder).get("run_id")}
        weights = {f"model.{name}": value for name, value in state.items()}
        checkpoint = {"state_dict": weights | {"train_counts": torch.zeros(4)}, "tencrop": facts}
        AtomicCheckpointIO().save_checkpoint(checkpoint, folder / "checkpoints" / "last.ckpt")
        finish(folder, status="complete", weights_sha256=weights_sha256(state))
        return config

    return train


@pytest.fixture
def evaluated(
    write_table: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Config], tuple[int, list[list[str]]]]:
    """evaluated(config): the exit code, and for every evaluation made "SEED PROTOCOL" of its members.

    write=False leaves the table as a test has written it.
    """
    monkeypatch.chdir(tmp_path)
    folder = write_table()
    evaluate = command.evaluate_and_track

    def run(config: Config, *words: str, interrupted_at: str = "", write: bool = True) -> Any:
        if write:
            write_table(rows=ROWS)
        made: list[list[str]] = []

        def note(targets: Any) -> Any:
            made.append([f"{target.config.seed} {target.config.protocol.name}" for target in targets])
            if interrupted_at in made[-1]:
                raise KeyboardInterrupt
            return evaluate(targets)

        monkeypatch.setattr(command, "evaluate_and_track", note)
        return evaluate_table(as_evaluation(config), words, folder), made

    return run


def as_evaluation(config: Config) -> EvaluateConfig:
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}
    return EvaluateConfig(**values, table="digits")


def test_finished_runs_are_evaluated_once_and_the_rest_is_listed(
    trained: Callable[[int], Config],
    evaluated: Callable[..., tuple[int, list[list[str]]]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    trained(0)
    config = trained(1)
    code, made = evaluated(config)
    assert code == 0
    assert made == [["0 center"], ["1 center"], ["0 five_crop"], ["1 five_crop"], ["0 center", "1 center"]]
    printed = capsys.readouterr().out
    lines = [line.strip() for line in printed.splitlines()]
    made_lines = [line for line in lines if re.match(r"[1-5]/5 ", line)]
    assert len(made_lines) == 5 and lines[:5] == made_lines  # one line for each, and nothing between them
    assert re.fullmatch(
        r"1/5 LeNet-5: lenet5_digits/seed0-\w{8}, center 32 of 36 px: top-1 \d+\.\d\d%, top-5 \d+\.\d\d%", lines[0]
    )
    assert re.match(r"5/5 2 LeNets: lenet5_digits/seed\{0,1\}-\w{8}, ", lines[4])
    for words in ("experiment=lenet5_digits seed=2", "model=resnet18"):
        at = lines.index(f"python train.py {words}")
        assert lines[at + 1] == f"sbatch --gpus-per-node=1 slurm/train.sbatch {words} hardware=gpu1"
    assert "not evaluated: withheld: the labels are withheld" in lines
    table = printed[printed.index("LeNet-5, table 1") :]
    assert table.count("worse") + table.count("seeds disagree") >= 3 and "evaluations/ensemble-" in table

    assert evaluated(config) == (0, [])  # nothing twice
    (tmp_path / "runs" / "lenet5_digits").rename(tmp_path / "runs" / "under_another_name")
    assert evaluated(config) == (0, [])
    for path in (tmp_path / "runs").rglob("last.ckpt"):
        path.unlink()
    assert evaluated(config) == (0, [])  # saved results do without checkpoints


def test_a_row_asks_for_seeds(
    trained: Callable[[int], Config],
    evaluated: Callable[..., tuple[int, list[list[str]]]],
    write_table: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained(0)
    config = trained(3)
    printed_mean = {**ROWS[0], "num_runs": 3}  # the paper's number of runs, unless num_seeds says otherwise
    for row, missing in ((printed_mean, [1]), ({**printed_mean, "num_seeds": 4}, [1, 2]), (ROWS[0], [])):
        write_table(rows=[row])
        evaluated(config, write=False)
        printed = capsys.readouterr().out
        assert ("seeds; train the others" in printed) == bool(missing)
        commands = [line.split()[-1] for line in printed.splitlines() if "train.py" in line]
        assert commands == [f"seed={seed}" for seed in missing]


CHAIN: list[dict[str, Any]] = [
    ROWS[0],
    {**ROWS[0], "id": "slower", "row": "slower", "overrides": ["optimizer.lr=0.002"], "init_from": "one"},
    {**ROWS[0], "id": "third", "row": "third", "overrides": ["optimizer.lr=0.003"], "init_from": "slower"},
]


def test_a_row_that_starts_from_a_run_is_printed_after_the_row_of_that_run(
    trained: Callable[..., Config],
    evaluated: Callable[..., tuple[int, list[list[str]]]],
    write_table: Callable[..., Path],
    composed: Callable[..., Config],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def commands(*rows: dict[str, Any]) -> dict[str, list[str]]:
        """By label of a row, the arguments of train.py that are printed for it."""
        capsys.readouterr()
        write_table(rows=rows)
        evaluated(config, write=False)
        found: dict[str, list[str]] = {}
        for line in capsys.readouterr().out.splitlines():
            if line.startswith("not evaluated: "):
                label, _, about = line.removeprefix("not evaluated: ").partition(": ")
                assert label == "LeNet-5" or about.startswith("train first"), about
                found[label] = []
            elif line.startswith("    python train.py "):
                found[label].append(line.removeprefix("    python train.py "))
        return found

    config = composed("experiment=lenet5_digits", f"runs={tmp_path}/runs")
    one = "experiment=lenet5_digits"
    first = run_path(composed(one))
    slower = f"{one} optimizer.lr=0.002 training.init.checkpoint={first}"
    third = f"{one} optimizer.lr=0.003 training.init.checkpoint={run_path(composed(*slower.split()))}"
    assert commands(*CHAIN) == {"LeNet-5": [one], "slower": [slower], "third": [third]}
    assert commands(*reversed(CHAIN)) == {"third": [one, slower, third], "slower": [slower], "LeNet-5": [one]}
    of_two_seeds = commands(CHAIN[0], {**CHAIN[1], "num_seeds": 2})["slower"]
    assert of_two_seeds == [
        *(f"{one} seed={seed}" for seed in (0, 1)),
        *(
            f"{one} optimizer.lr=0.002 seed={seed} training.init.checkpoint={run_path(composed(one, f'seed={seed}'))}"
            for seed in (0, 1)
        ),
    ]

    config = trained(0)
    assert commands(*CHAIN) == {"slower": [slower], "third": [third]}, "the finished run, by its path from here"


def test_a_run_belongs_to_a_row_by_the_weights_that_it_started_from(
    trained: Callable[..., Config],
    evaluated: Callable[..., tuple[int, list[list[str]]]],
    write_table: Callable[..., Path],
    tmp_path: Path,
) -> None:
    write_table(rows=[{**row, "num_seeds": 3} for row in CHAIN[:2]])
    config = trained(0)
    (source,) = (tmp_path / "runs" / "lenet5_digits").glob("seed0-*")
    elsewhere = shutil.copytree(source, tmp_path / "elsewhere")
    trained(1, "optimizer.lr=0.002", f"training.init.checkpoint={elsewhere}")  # the same weights at another path
    assert evaluated(config, write=False)[1] == [["0 center"], ["1 center"]]
    other = trained(7, "optimizer.lr=0.008")
    (path,) = (tmp_path / "runs" / "lenet5_digits").glob("seed7-*")
    trained(2, "optimizer.lr=0.002", f"training.init.checkpoint={path}")  # other weights
    trained(3, "optimizer.lr=0.003", f"training.init.checkpoint={source}")  # another recipe
    trained(4, "optimizer.lr=0.002")  # from the seed
    assert evaluated(other, write=False) == (0, [])


def test_an_ensemble_of_one_network_is_made_for_every_seed(
    trained: Callable[[int], Config],
    evaluated: Callable[..., tuple[int, list[list[str]]]],
    write_table: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    trained(0)
    config = trained(1)
    five = {**ROWS[1], "protocol": {"name": "five_crop", "average": "softmax"}}
    both = {"id": "both", "row": "both", "top1": "1.7", "top5": "0", "members": [{"row": "one"}, {"row": "five"}]}
    write_table(rows=[ROWS[0], five, {**both, "num_seeds": 2}])
    made = evaluated(config, write=False)[1]
    assert made[-2:] == [["0 center", "0 five_crop"], ["1 center", "1 five_crop"]]
    assert evaluated(config, write=False) == (0, [])
    # A second file of one ensemble, as earlier code wrote it for members in another order, is not the missing one.
    first, second = sorted((tmp_path / "evaluations").iterdir())
    shutil.rmtree(second)
    shutil.copytree(first, second)
    assert len(evaluated(config, write=False)[1]) == 1

    # Another protocol of a member: the networks are the row's, and the evaluated ensembles are not.
    write_table(rows=[ROWS[0], five, {**both, "members": [{"row": "one", "protocol": {"side": 40}}, {"row": "five"}]}])
    assert evaluated(config, write=False)[1] == [["0 center", "0 five_crop"]]
    write_table(rows=[ROWS[0], five, {**both, "num_seeds": 2}])
    for path in (tmp_path / "runs").rglob("last.ckpt"):
        path.unlink()
    shutil.rmtree(tmp_path / "evaluations")
    capsys.readouterr()
    assert evaluated(config, write=False) == (0, [])  # no checkpoint is read: the saved scores are averaged
    assert "2/2 both: lenet5_digits/seed1-" in capsys.readouterr().out


def test_an_interrupted_command_continues(trained: Callable[[int], Config], evaluated: Callable[..., Any]) -> None:
    config = trained(0)
    with pytest.raises(KeyboardInterrupt):
        evaluated(config, interrupted_at="0 five_crop")
    assert evaluated(config) == (0, [["0 five_crop"]])


def test_a_run_that_cannot_be_evaluated_does_not_stop_the_others(
    trained: Callable[[int], Config], evaluated: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    broken, config = trained(0), trained(1)
    (path,) = Path(broken.runs).glob("*/seed0-*/checkpoints/last.ckpt")
    path.write_bytes(b"no checkpoint")
    code, made = evaluated(config)
    assert code == 2 and ["1 center"] in made and ["1 five_crop"] in made
    output = capsys.readouterr()
    assert "not evaluated: LeNet-5; five crops: lenet5_digits/seed0-" in output.out and str(path) in output.err


def test_a_row_fixes_the_protocol(evaluated: Callable[..., Any], composed: Callable[..., Config]) -> None:
    config = composed("experiment=lenet5_digits")
    for word in ("protocol=center", "protocol.side=40", "training.precision=fp32", "model=lenet5"):
        with pytest.raises(UserError, match=f"^{word}: with table=digits, each row gives the runs"):
            evaluated(config, word)
    assert evaluated(config, "data.root=elsewhere", "hardware=cpu") == (0, [])


def test_a_protocol_in_words_leaves_open_what_the_paper_leaves_open() -> None:
    words = ("protocol=dense", "protocol.side=[36,48]", "protocol.size=32", "protocol.region=whole")
    assert protocol_overrides(PROTOCOL)[:4] == words and protocol_overrides(PROTOCOL)[-1] == "protocol.average=softmax"
    assert not any("filter" in word for word in protocol_overrides(PROTOCOL))
    kept = protocol_overrides(dataclasses.replace(PROTOCOL, side=None))
    assert not any("side=" in word for word in kept)
    central = protocol_overrides(dataclasses.replace(PROTOCOL, name="center", side=None, resize="central_fraction"))
    assert {"protocol.side=null", "protocol.resize=central_fraction"} < set(central)  # it has no side, and says so
    for name in (None, "no_such_crop"):
        with pytest.raises(UserError, match=r"no_such_crop|does not state"):
            protocol_overrides(dataclasses.replace(PROTOCOL, name=name))


def test_a_batch_job_has_a_task_for_every_device() -> None:
    two_nodes = Hardware(accelerator="gpu", devices=8, nodes=2, workers="auto", max_micro_batch=None)
    assert sbatch_line(("model=vgg_d", "augmentation.side=[256,512]", "hardware=nodes2x8"), two_nodes) == (
        "sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 slurm/train.sbatch model=vgg_d"
        ' "augmentation.side=[256,512]" hardware=nodes2x8'
    )
