"""Whether a training that is killed at random moments, and continued by the same command, ends like an undisturbed one.

    python bench/kill_and_resume.py [--count 50] [--seed 0] [--folder DIR]

Trains a small ResNet on the digits for 40 steps by two recipes: a plain one, and one with mixing, EMA, dropout,
stochastic depth, plateau schedule, accumulation and growing images. Each sequence interrupts train.py once or twice in
one way (KINDS in bench/interruptions.py), repeats the command until it is complete, and compares its run folder with
that of a run without interruption:

    equal        the same weights, raw and EMA, the same test errors, and the same rows of metrics.jsonl
    different    other weights or test errors
    gap          metrics.jsonl lacks rows, repeats some, or has others
    traceback    a command printed a traceback
    failed       a command ended with an exit code that is none of an interruption, or not at all

--seed chooses the moments, which are printed; which instruction they meet depends on the machine. With --folder, the
command may itself be stopped and repeated. Exit code 1 if a sequence is not equal.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interruptions import KINDS, PLACES, ROOT, Kind, Moment, MomentOfWrite, interrupt, start

from tencrop.config import UserError
from tencrop.evaluation.results import load_result
from tencrop.text_tables import aligned
from tencrop.training.metric_rows import read_rows

OUTCOMES = ("equal", "different", "gap", "traceback", "failed")
NUM_STEPS = 40  # 18 an epoch; checkpoints every 7 steps and at the end of an epoch
COMMON = [
    "experiment=lenet5_digits", "model=timm", "model.name=test_resnet", "model.bn_group=16", "optimizer.lr=0.02",
    "training.global_batch=64", "training.epochs=null", f"training.steps={NUM_STEPS}", "training.minival_fraction=0.1",
    "checkpoint_every_steps=7", "log_every_steps=1", "tracker=none", "hardware=cpu", "hardware.workers=1",
]  # fmt: skip
RECIPES = {
    "plain": [],
    "all parts": [
        "+model.kwargs.drop_rate=0.2", "+model.kwargs.drop_path_rate=0.1", "training.ema_decay=0.9",
        "augmentation.mixing.mixup_alpha=0.8", "augmentation.mixing.cutmix_alpha=1.0",
        "augmentation.mixing.mix_group=8", "augmentation.progressive.start_size=16",
        "augmentation.progressive.start_ramp=0", "augmentation.progressive.end_ramp=2",
        "augmentation.progressive.multiple=8", "schedule=plateau", "schedule.patience=1", "hardware.max_micro_batch=16",
    ],
}  # fmt: skip
# Delays are drawn up to these seconds: of a command until its first step, of some steps, and of the final evaluation.
START_S, STEP_S, EVALUATION_S = 2.0, 0.2, 1.0


@dataclass(frozen=True)
class Sequence:
    """The interruptions of one run, one per command."""

    number: int
    kind: Kind
    recipe: str
    moments: tuple[Moment | MomentOfWrite, ...]

    def __str__(self) -> str:
        return f"{self.number}. {self.kind.name}, {self.recipe}: {'; '.join(map(str, self.moments))}"


@dataclass(frozen=True)
class Found:
    """The outcome of a sequence, and how many of its commands were interrupted before they were done."""

    sequence: str
    kind: str
    recipe: str
    num_interruptions: int
    outcome: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="of data, runs and outcomes; default: a temporary one"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tencrop-") as temporary:
        found = run_all(sequences(options.count, seed=options.seed), options.folder or Path(temporary))
    print("\n".join(table(found)))
    return int(any(one.outcome != "equal" for one in found))


def sequences(count: int, *, seed: int) -> list[Sequence]:
    """`count` sequences, of all kinds and recipes in turn. The moments depend on the seed and a sequence's number."""
    turns = itertools.cycle(itertools.product(KINDS, RECIPES))
    return [
        Sequence(number, kind, recipe, tuple(_moments(kind, number, random.Random(f"{seed} {number}"))))
        for number, (kind, recipe) in enumerate(itertools.islice(turns, count), 1)
    ]


def _moments(kind: Kind, number: int, rng: random.Random) -> Iterator[Moment | MomentOfWrite]:
    """One or two moments: an eighth of them while a command starts, an eighth after the last step, most in training."""
    steps = sorted(rng.sample(range(1, NUM_STEPS * 8 // 7), rng.choice((1, 2))))
    # So that the sequences of one kind take turns.
    first_place = number + number // (len(KINDS) * len(RECIPES))
    for turn, step in enumerate(steps, first_place):
        rank = rng.randrange(kind.num_ranks)
        if kind.is_in_write:
            yield MomentOfWrite(rng.randrange(1, 7), PLACES[turn % len(PLACES)], rng.random())
        elif rng.random() < 1 / 8:
            yield Moment(0, rng.uniform(0, START_S), rank)
        else:
            yield Moment(min(step, NUM_STEPS), rng.uniform(0, STEP_S if step < NUM_STEPS else EVALUATION_S), rank)


def run_all(planned: list[Sequence], folder: Path) -> list[Found]:
    """Run the sequences in `folder`, except those whose outcome an earlier call has recorded there."""
    folder.mkdir(parents=True, exist_ok=True)
    record, found = folder / "outcomes.jsonl", []
    done = [Found(**json.loads(line)) for line in record.read_text().splitlines()] if record.exists() else []
    known = {one.sequence: one for one in done}
    words = ["data=digits", f"data.root={folder / 'digits'}"]
    subprocess.run([sys.executable, str(ROOT / "prepare.py"), *words], check=True, stdout=subprocess.DEVNULL)
    for sequence in planned:
        one = known.get(str(sequence)) or run_sequence(sequence, folder)
        if str(sequence) not in known:
            with record.open("a") as file:
                file.write(json.dumps(dataclasses.asdict(one)) + "\n")
        print(f"{one.sequence}: {one.outcome}", flush=True)
        found.append(one)
    return found


def run_sequence(sequence: Sequence, folder: Path, *, data: Path | None = None) -> Found:
    """Interrupt and repeat one training below `folder`, and compare it with the run without interruption there.

    data: the prepared digits, folder/digits by default. The files of an equal run are deleted.
    """
    words = [*COMMON, *RECIPES[sequence.recipe], f"data.root={data or folder / 'digits'}"]
    words += [f"hardware.devices={sequence.kind.num_ranks}"]
    reference = _undisturbed(sequence, words, folder)
    runs, log = folder / f"run{sequence.number}", folder / f"run{sequence.number}.log"
    shutil.rmtree(runs, ignore_errors=True)
    log.unlink(missing_ok=True)
    codes = []
    for moment in (*sequence.moments, None):
        in_write = moment if isinstance(moment, MomentOfWrite) else None
        process = start([*words, f"runs={runs}"], in_write, log)
        codes.append(interrupt(process, sequence.kind, moment if isinstance(moment, Moment) else None, runs))
        if codes[-1] not in sequence.kind.exit_codes | {0}:
            break  # no further command would mend that
    if "Traceback (most recent call last)" in log.read_text():
        outcome = "traceback"
    elif codes[-1] != 0:
        outcome = "failed"
    else:
        outcome = compare(_run_in(runs), _run_in(reference))
    if outcome == "equal":
        shutil.rmtree(runs)
        log.unlink()
    num_interruptions = sum(code != 0 for code in codes)
    return Found(str(sequence), sequence.kind.name, sequence.recipe, num_interruptions, outcome)


def _undisturbed(sequence: Sequence, words: list[str], folder: Path) -> Path:
    """The folder of the run without interruption, which is trained if it is not there."""
    runs = folder / f"undisturbed-{sequence.recipe}-{sequence.kind.num_ranks}".replace(" ", "-")
    if not list(runs.rglob("report.html")):  # what the command writes last
        shutil.rmtree(runs, ignore_errors=True)
        log = folder / f"{runs.name}.log"
        code = interrupt(start([*words, f"runs={runs}"], None, log), sequence.kind, None, runs)
        assert code == 0, f"{log}: exit code {code} of a training that nothing has interrupted"
    return runs


def _run_in(runs: Path) -> Path:
    (manifest,) = runs.rglob("manifest.json")
    return manifest.parent


def compare(run: Path, reference: Path) -> str:
    """Whether two run folders are equal, different, or have a gap, as in OUTCOMES."""
    if results(run) != results(reference):
        return "different"
    try:
        return "equal" if rows(run) == rows(reference) else "gap"
    except UserError:  # the digests of the rows show that some are missing or repeated
        return "gap"


def results(run: Path) -> list[Any]:
    """The state of the run, its weights, and the test errors of its evaluations."""
    result = json.loads((run / "manifest.json").read_text())["result"]
    found = [result["status"], result["weights_sha256"], result["ema_sha256"]]
    for path in sorted((run / "predictions").glob("*.result.json")):
        evaluated = load_result(path)
        found += [path.name, *(evaluated[key] for key in ("weights_sha256", "top1_error", "top5_error", "num_images"))]
    return found


def rows(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, compared with the digest in the manifest, without the speed, which varies."""
    expected = json.loads((run / "manifest.json").read_text())["result"]["metrics_digest"]
    read = read_rows(run / "metrics.jsonl", expected=expected)
    return [{key: value for key, value in row.items() if key != "images_per_s"} for row in read]


def table(found: list[Found]) -> list[str]:
    """The lines of the table: one for each kind and recipe, and the total."""
    head = ["interrupted by", "recipe", "sequences", "interruptions", *OUTCOMES]
    lines = []
    for kind, recipe in dict.fromkeys((one.kind, one.recipe) for one in found):
        lines.append([kind, recipe, *_counts([one for one in found if (one.kind, one.recipe) == (kind, recipe)])])
    return aligned([head, *lines, ["all", "", *_counts(found)]], left=(0, 1))


def _counts(found: list[Found]) -> list[str]:
    outcomes = Counter(one.outcome for one in found)
    numbers = [len(found), sum(one.num_interruptions for one in found), *(outcomes[name] for name in OUTCOMES)]
    return [str(number) for number in numbers]


if __name__ == "__main__":
    sys.exit(main())
