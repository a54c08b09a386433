"""The command submit: submits a training, an array of seeds, or the missing runs of a paper's table to SLURM."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tencrop.cli.choices import CONF
from tencrop.cli.command import command, overrides, own_folders
from tencrop.cli.command_line import for_shell, keys_typed
from tencrop.cli.compose import compose_training
from tencrop.config import (
    Config,
    EvaluateConfig,
    Hardware,
    SubmitConfig,
    UserError,
    check_data,
    check_preparation,
    check_store,
    derive_batches,
    own_keys,
    plain_config,
    run_path,
)
from tencrop.config.initialization import source_file, teacher_file
from tencrop.config.recipes import print_recipes
from tencrop.config.tracker import check_tracker
from tencrop.data.sources.imagenet_test_sets import check_has_training_split
from tencrop.data.store.manifest import read_manifest
from tencrop.records.run_folder import is_complete
from tencrop.submission.batch import EVALUATE, SEEDS, TRAIN, Job, check_hardware, cluster_script, shown
from tencrop.submission.batch import command as sbatch_command
from tencrop.submission.snapshot import snapshot_files, snapshot_folder
from tencrop.submission.submit import active_job, check_sbatch, submit

SEVERAL_SEEDS = re.compile(r"seed=([0-9]+(?:,[0-9]+)+)")


def main(words: list[str] | None = None) -> None:
    """Entry point; words: the arguments, sys.argv's by default. seed=0,1,2 is an array, where others need -m."""
    typed = sys.argv[1:] if words is None else words
    found = [match for word in typed if (match := SEVERAL_SEEDS.fullmatch(word))]
    seeds = tuple(map(int, found[-1][1].split(","))) if found else ()
    # Rewritten before Hydra reads the words: it refuses a list of seeds without -m. One seed stands for all, because
    # it changes nothing that is checked before submission.
    single = [f"seed={seeds[0]}" if SEVERAL_SEEDS.fullmatch(word) else word for word in typed]
    command("submit", SubmitConfig)(partial(_submit, seeds=seeds))(single)


@dataclass(frozen=True)
class Training:
    """A training to submit, with one or several seeds."""

    words: tuple[str, ...]  # of train.py, without the seed if there are several
    configs: tuple[Config, ...]  # one for each seed


def _submit(config: SubmitConfig, seeds: Sequence[int]) -> int:
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seed={','.join(map(str, seeds))}: names a seed twice; name each once")
    if config.table == "?":
        from tencrop.commands.evaluate_table import evaluate_table

        return evaluate_table(EvaluateConfig(**vars(plain_config(config)), table="?"), [])
    for folder in own_folders():
        raise UserError(
            f"{folder}: its files are not in the copy of the code that a job runs; put them into conf/ of the checkout,"
            " and leave --config-dir or hydra.searchpath out"
        )
    check_hardware(config.hardware)
    # A dry run works on any machine, so that a job can be read before one logs in to the cluster.
    if not config.dry_run:
        check_sbatch()
    typed = [word for word in overrides() if not _is_own(word)]
    if config.table is not None:
        return _submit_table(config, typed, seeds)
    print_recipes([plain_config(config)])
    words = tuple(word for word in typed if not seeds or keys_typed([word]) != {"seed"})
    training = Training(words, tuple(replace(plain_config(config), seed=seed) for seed in seeds or [config.seed]))
    _check(training.configs[0], typed)
    _submit_jobs(config, [training], stop_at_active=True)
    return 0


def _is_own(word: str) -> bool:
    return bool({key.partition(".")[0] for key in keys_typed([word])} & own_keys(SubmitConfig))


def _submit_table(config: SubmitConfig, typed: Sequence[str], seeds: Sequence[int]) -> int:
    """Submit the trainings that evaluate.py table=NAME lists as missing, and then its evaluation."""
    from tencrop.commands.evaluate_table import check_words, plan_tables
    from tencrop.report.row_commands import training_commands

    assert config.table is not None
    if seeds:
        raise UserError("seed: each row of the table says how many seeds it needs; leave it out")
    evaluate = EvaluateConfig(**vars(plain_config(config)), table=config.table)
    check_words(evaluate, typed)
    _, remaining, runs_of = plan_tables(evaluate)
    # A training that starts from another run comes after that run.
    chains = [training_commands(training, runs_of, typed) for one in remaining for training in one.trainings]
    trainings = _by_recipe([words for chain in chains for words in chain], typed)
    submitted = {run_path(run) for training in trainings for run in training.configs}
    for training in trainings:
        _check(training.configs[0], typed, submitted)
    jobs = _submit_jobs(config, trainings, stop_at_active=False)
    # After the user's words, which hardware=gpu8 may be among: eight devices are for the trainings.
    one = [] if config.hardware.devices * config.hardware.nodes == 1 else ["hardware.devices=1", "hardware.nodes=1"]
    job = Job(
        name=f"table-{config.table}",
        batch_file=EVALUATE,
        folder=Path(config.runs) / "tables" / config.table,
        words=(f"table={config.table}", *typed, *one),
        hardware=replace(config.hardware, devices=1, nodes=1),
        after=tuple(jobs.values()),
    )
    _submit_one(config, job, snapshot_files(cluster_script(config.cluster)), [])
    return 0


def _by_recipe(commands: Sequence[Sequence[str]], typed: Sequence[str]) -> list[Training]:
    """The trainings of these arguments of train.py, each once; those that differ only in the seed are one Training.

    Seeds of a recipe become one array: one snapshot, one log pattern and one scancel for all of them.
    """
    by_recipe: dict[tuple[str, ...], dict[Path, Config]] = {}
    for words in dict.fromkeys(tuple(words) for words in commands):
        recipe = tuple(word for word in words if not word.startswith("seed="))
        config = compose_training([*words, *typed], CONF)
        # By folder, and not by words: a row without a seed has the run of one with the recipe's own seed.
        by_recipe.setdefault(recipe, {})[run_path(config)] = config
    trainings = []
    for recipe, runs in by_recipe.items():
        configs = tuple(runs.values())
        seed = () if len(configs) > 1 else (f"seed={configs[0].seed}",)
        trainings.append(Training((*recipe, *seed, *typed), configs))
    return trainings


def _check(config: Config, typed: Sequence[str], submitted: Collection[Path] = ()) -> None:
    """Raise UserError for what train.py would refuse in the job, hours later.

    submitted: run folders whose weights do not exist yet, but will when the job starts.
    """
    check_has_training_split(config.data.name)
    check_tracker(config.tracker)
    derive_batches(config)
    manifest = read_manifest(config.data.root, config.data.name)
    check_data(config, manifest)
    check_store(config, manifest)
    check_preparation(config, manifest, keys_typed(typed))
    if _source(config) not in submitted:
        source_file(config.training.init, run_path(config))
    if config.training.distill.teacher is not None and not is_complete(run_path(config)):
        teacher_file(config.training.distill, run_path(config))


def _source(config: Config) -> Path | None:
    """The run folder or file that a training starts from; None if it starts from random weights."""
    return None if config.training.init.checkpoint is None else Path(config.training.init.checkpoint)


def _submit_jobs(config: SubmitConfig, trainings: Sequence[Training], *, stop_at_active: bool) -> dict[Path, str]:
    """Submit trainings, without the runs that are complete or have a job; returns the job of each other run folder.

    A training that starts from the run of an earlier one in `trainings` waits until that has succeeded.
    stop_at_active: raise UserError for a run that has a job.
    """
    # Read once for all jobs: an edit while 60 of them are submitted must not give them different code.
    files = snapshot_files(cluster_script(config.cluster))
    jobs: dict[Path, str] = {}
    for training in trainings:
        if runs := _runs_without_job(training, jobs, stop_at_active=stop_at_active):
            job = _job(training, runs, jobs, config.hardware)
            number = _submit_one(config, job, files, runs)
            for run in runs:
                of_run = f"{number}_{run.seed}" if job.seeds else number
                # A dry run shows which job the dependency is, as there is no number yet.
                jobs[run_path(run)] = of_run if number else f"<job of {run_path(run)}>"
    return jobs


def _runs_without_job(training: Training, jobs: dict[Path, str], *, stop_at_active: bool) -> list[Config]:
    """The runs to submit; adds the jobs of the others, unless they are complete, to `jobs`."""
    runs = []
    for run in training.configs:
        if is_complete(run_path(run)):
            print(f"{run_path(run)}: complete, not submitted")
        elif (number := active_job(run)) is None:
            runs.append(run)
        elif stop_at_active:
            raise UserError(f"{run_path(run)}: job {number} trains it; scancel {number} ends that job")
        else:
            print(f"{run_path(run)}: job {number} trains it, not submitted again")
            jobs[run_path(run)] = number
    return runs


def _job(training: Training, runs: Sequence[Config], jobs: Mapping[Path, str], hardware: Hardware) -> Job:
    """The job that trains `runs`, those of the training that have none yet.

    jobs: by run folder. The job waits for those whose weights it starts from.
    """
    # By all configurations and not by the runs that are left: the words have no seed, so even a single run gets its own
    # from the index in the array.
    is_array = len(training.configs) > 1
    folder = run_path(runs[0]).parent if is_array else run_path(runs[0])
    return Job(
        name=folder.name if is_array else f"{folder.parent.name}-seed{runs[0].seed}",
        batch_file=SEEDS if is_array else TRAIN,
        folder=folder,
        words=training.words,
        hardware=hardware,
        seeds=tuple(run.seed for run in runs) if is_array else (),
        after_success=tuple(dict.fromkeys(jobs[source] for run in runs if (source := _source(run)) and source in jobs)),
    )


def _submit_one(config: SubmitConfig, job: Job, files: dict[str, bytes], runs: Sequence[Config]) -> str:
    """Submit a job and print where it is; returns its number. With dry_run print it, and return an empty text."""
    if config.dry_run:
        snapshot = snapshot_folder(job.folder, files)
        print(f"# {shown(sbatch_command(job, config.cluster, snapshot))}")
        print(files[job.batch_file].decode())
        print(f"# {snapshot}/slurm/cluster.sh\n{cluster_script(config.cluster)}")
        return ""
    done = submit(job, config.cluster, files, runs)
    print(f"job         {done.number}" + (f", an array of {len(job.seeds)} seeds" if job.seeds else ""))
    if waits_for := [*job.after_success, *job.after]:
        print(f"waits for   {' '.join(waits_for)}")
    for run in runs:
        print(f"run folder  {run_path(run)}")
    print(f"code        {done.snapshot}")
    for log in done.logs:
        print(f"log file    {log}")
    print(f"follow      tail -F {' '.join(for_shell(str(log)) for log in done.logs)}")
    print(f"state       squeue --jobs={done.number}; scancel {done.number} ends it")
    return done.number
