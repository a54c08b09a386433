"""From weights to a result: scores saved before are used again, missing ones are computed, errors are counted.

Called by evaluate.py, and by train.py when a training has ended.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from tencrop.config import Config, UserError
from tencrop.config.code import PACKAGE, SCORING, code_sha256
from tencrop.config.launcher import is_first_process
from tencrop.config.writable import check_writable
from tencrop.data.augmentation.color import mean_and_std
from tencrop.evaluation.claims import claimant, is_claimed
from tencrop.evaluation.ensembles import ensemble
from tencrop.evaluation.inference import Task, check_scorable, join_launched, open_val_split, score_split
from tencrop.evaluation.predictions import Scores, cpu_group, protocol_text, save_scores, saved_scores
from tencrop.evaluation.preprocessing import preprocessing_line
from tencrop.evaluation.protocols import default_side
from tencrop.evaluation.publishers import with_preprocessing
from tencrop.evaluation.results import result_name, result_of, save_result
from tencrop.evaluation.targets import EVALUATIONS, EvaluationTarget, source_fingerprint
from tencrop.models.checkpoint_files import weights_sha256
from tencrop.models.factory import build_model
from tencrop.models.weights import apply_weights, load_weights
from tencrop.training.precision import set_precision

MEND = "make room, or name another folder with evaluate.py's output=DIR"


class Evaluated(NamedTuple):
    """One evaluation: its scores, the content of its result.json, and the folder that holds both."""

    scores: Scores
    result: dict[str, Any]
    out: Path


def evaluate_run(config: Config, *, manifest: dict[str, Any], checkpoint: Path, out: Path) -> dict[str, Any] | None:
    """Evaluate a checkpoint under the configuration's protocol; scores and result.json go to the folder `out`.

    manifest: of the prepared data. Every process of a group calls it, and all but the first get None; without a group
    it starts as many processes as the hardware says. Raises UserError where weights do not fit, scores are not
    finite, or the data are not as prepared.
    """
    found = evaluate_members([EvaluationTarget(config, checkpoint, manifest, out)])
    return found[0].result if found else None


def evaluate_members(members: Sequence[EvaluationTarget]) -> list[Evaluated]:
    """All members and, where they are several, their ensemble, last; empty but on the first process of a group."""
    join_launched()  # before a file is looked at: the first process decides for all
    if not _is_first() and not dist.is_initialized():
        return []  # one of several that nobody joined
    _stop_together(_unwritable(_places_of(members)))
    found = [evaluated for member in members if (evaluated := _evaluate(member)) is not None]
    return [*found, _evaluate_ensemble(members, found)] if len(found) > 1 else found


def _evaluate(member: EvaluationTarget) -> Evaluated | None:
    path = member.path
    weights = load_weights(path, ema=member.config.ema)
    network = build_model(member.config.model, num_classes=member.num_classes)
    config, source = with_preprocessing(member, network, weights.facts)
    apply_weights(network, weights.state, source=str(path), name=f"{config.model.name} ({member.num_classes} classes)")
    # normalization=dataset means the data that the network was trained on
    mean, std = mean_and_std(config.normalization, weights.facts or member.manifest["statistics"])
    if _is_first() and (member.typed is not None or config.weights is not None):
        print(preprocessing_line(path.name, config, mean, std, source), flush=True)
    identity = {
        "protocol": protocol_text(config.protocol),
        "model": config.model.name,
        "model_kwargs": json.dumps(config.model.kwargs, sort_keys=True),
        "weights": weights.kind,
        "weights_sha256": weights_sha256(network.state_dict()),
        "data": config.data.name,
        "source_fingerprint": source_fingerprint(member.manifest),
        "normalization": json.dumps({"mean": mean, "std": std}),
        "precision": config.training.precision,
        "code_sha256": code_sha256(PACKAGE, SCORING),
        "allow_tf32": json.dumps(set_precision(config.training.precision)),
        **({"loader": "ffcv"} if config.data.loader == "ffcv" else {}),  # the pixels of the others are the same
    }
    digest = _short_hash(identity["weights_sha256"], identity["source_fingerprint"])
    out = member.out or EVALUATIONS / f"{config.model.name.replace('/', '-')}-{digest}"
    stem = file_stem(config, weights.kind, path.stem if weights.facts else "last")
    labels = open_val_split(config).labels  # on all processes: what is wrong with the data stops them together
    scores = refusal = None
    if _is_first():
        file, is_read_only = out / f"{stem}.safetensors", out.is_dir() and not os.access(out, os.W_OK)
        options: dict[str, Any] = {"labels": labels, "with_views": config.save_views, "of_any_code": is_read_only}
        scores = saved_scores(file, identity, **options)
        if scores is not None and scores.metadata["code_sha256"] != identity["code_sha256"]:
            print(f"{file}: computed by another version of the code; its folder is read-only", file=sys.stderr)
        refusal = None if scores is not None else _unwritable([file, out / f"{stem}.result.json"])
    _stop_together(refusal)
    is_saved = _agreed(scores is not None)
    if not is_saved:
        check_scorable(network, config)
        task = Task(config, path, weights.kind, member.num_classes, mean, std, identity)
        scores = score_split(task, network)
    if scores is None:
        return None
    origin = {"mean": mean, "std": std, "preprocessing": source, **_origin(member, weights.facts)}
    is_of_run = bool(weights.facts) and member.typed is None and config.weights is None
    recipe = claimant(config, member.manifest) if is_of_run else None
    return _save(scores, config, out, stem, recipe=recipe, is_saved=is_saved, **origin)


def _places_of(members: Sequence[EvaluationTarget]) -> list[Path]:
    """Files that an ensemble will certainly write, tried before its first member is scored."""
    if len(members) < 2:
        return []
    config, outs = members[0].config, [member.out for member in members if member.out is not None]
    joint = EVALUATIONS if config.output is None else Path(config.output)
    folders = [joint, *(out for out in outs if not any(out.glob("*.safetensors")))]
    return [folder / "scores.safetensors" for folder in folders]


def _unwritable(paths: Sequence[Path]) -> UserError | None:
    """Why one of the files cannot be written; None where all can, and on all processes but the first."""
    try:
        if _is_first():
            check_writable(*paths, mend=MEND)
    except UserError as error:
        return error
    return None


def _stop_together(refusal: UserError | None) -> None:
    """Raises the first process's refusal there, and ends the others with its exit code: they would wait for it."""
    if _agreed(refusal is not None):
        raise refusal or SystemExit(2)


def _origin(member: EvaluationTarget, facts: dict[str, Any]) -> dict[str, Any]:
    """What is known of the weights, for result.json; facts: what a checkpoint of ours says of itself."""
    path, config = member.path, member.config
    if not facts:
        return {"checkpoint": str(path), "label": path.name, "selection": None, "seed": None, "claim": None}
    label = f"{config.name or config.model.name} seed {facts['seed']}"
    if facts["step"] < facts["total_steps"]:
        label += f", step {facts['step']} of {facts['total_steps']}"
    return {  # trained here: the configuration is the recipe's
        "checkpoint": str(path),
        "label": label,
        "selection": "best" if path.stem == "best" else "last",
        **{key: facts[key] for key in ("seed", "step", "total_steps")},
        "run_id": facts.get("run_id"),  # checkpoints of earlier code have none
    }


def _evaluate_ensemble(members: Sequence[EvaluationTarget], found: Sequence[Evaluated]) -> Evaluated:
    config = members[0].config
    joint = ensemble([one.scores for one in found], names=[str(member.path) for member in members])
    hashes = [one.scores.metadata[key] for one in found for key in ("weights_sha256", "protocol")]
    name = f"ensemble-{_short_hash(*hashes, joint.metadata['source_fingerprint'])}"
    origin: dict[str, Any] = {
        "checkpoint": [str(member.path) for member in members],
        "label": f"ensemble of {len(members)}",
        "selection": None,
        "seed": [one.result["seed"] for one in found],
        "claim": None,  # a member's is not the ensemble's
    }
    for key in ("protocol", "side", "size", "region", "filter", "mean", "std", "preprocessing"):
        every = [one.result[key] for one in found]
        values = [value for number, value in enumerate(every) if value not in every[:number]]  # a side may be a list
        origin[key] = values[0] if len(values) == 1 else " + ".join(str(value) for value in values)
    out = Path(config.output) if config.output is not None else EVALUATIONS / name
    return _save(joint, config, out, file_stem(config), **origin)


def file_stem(config: Config, kind: str = "raw", checkpoint: str = "last") -> str:
    """Name of a score file without its suffix: the protocol's, and what differs from the usual.

    Usual are the recipe's own sizes and filter, the whole image, raw weights, the last checkpoint and a loader whose
    pixels are Pillow's.
    """
    protocol = config.protocol
    sides = "-".join(str(side or "kept") for side in protocol.sides)
    parts = {
        protocol.name: True,
        protocol.region: protocol.region != "whole",
        f"side{sides}": protocol.side != default_side(protocol.name, config.short_side),
        f"size{protocol.size}": protocol.size != config.image_size,
        protocol.filter: protocol.filter != config.augmentation.filter,
        checkpoint: checkpoint != "last",
        kind: kind != "raw",
        "ffcv": config.data.loader == "ffcv",
    }
    return "-".join(part for part, differs in parts.items() if differs)


def _save(
    scores: Scores,
    config: Config,
    out: Path,
    stem: str,
    *,
    recipe: Config | None = None,
    is_saved: bool = False,
    **origin: Any,
) -> Evaluated:
    """Write scores and result; nothing where the scores are not finite (UserError).

    recipe: of the file that claims a published error, where these weights are those of a run of it.
    """
    result = result_of(scores, config, scores=f"{stem}.safetensors", **origin)
    if recipe is None or not is_claimed(result, recipe):
        result["claim"] = None
    if not is_saved:
        save_scores(out / f"{stem}.safetensors", scores)
    if not is_saved or os.access(out, os.W_OK):  # what was evaluated before is shown from a read-only folder
        save_result(out / f"{result_name(result)}.result.json", result)
    return Evaluated(scores, result, out)


def _is_first() -> bool:
    return dist.get_rank() == 0 if dist.is_initialized() else is_first_process()


def _agreed(decision: bool) -> bool:
    """The first process's decision, on all."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return decision
    flag = torch.tensor([decision])
    with cpu_group() as group:
        dist.broadcast(flag, src=0, group=group)
    return bool(flag)


def _short_hash(*texts: str) -> str:
    return hashlib.sha256(" ".join(texts).encode()).hexdigest()[:8]
