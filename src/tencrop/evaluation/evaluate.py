"""Evaluate weights: reuse saved scores or compute them, count errors, and write result.json.

Used by evaluate.py, and by train.py at the end of a training.
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
from tencrop.data.augmentation.mean_image import array_sha256, mean_image_of
from tencrop.evaluation.checks import check_scorable
from tencrop.evaluation.ensembles import ensemble, ensemble_facts, is_ensemble
from tencrop.evaluation.file_names import file_stem, joint_stem
from tencrop.evaluation.inference import ScoringTask, open_val_split
from tencrop.evaluation.predictions import Scores, cpu_group, load_scores, protocol_text, save_scores, saved_scores
from tencrop.evaluation.preprocessing import changed_normalization, preprocessing_line
from tencrop.evaluation.processes import joined_launched, score_split
from tencrop.evaluation.publishers import with_preprocessing
from tencrop.evaluation.results import load_result, result_name, result_of, save_result
from tencrop.evaluation.subsets import evaluated_fingerprint, evaluated_index, subset_hash
from tencrop.evaluation.targets import EVALUATIONS, EvaluationTarget
from tencrop.models.checkpoint_files import weights_sha256
from tencrop.models.factory import build_model
from tencrop.models.mappings import pair_lines
from tencrop.models.weights import apply_weights, load_weights, statistics_of
from tencrop.training.precision import set_precision

REMEDY = "make room, or name another folder with evaluate.py's output=DIR"


class Evaluated(NamedTuple):
    """One finished evaluation: its scores, the content of its result.json, and the folder with both files."""

    scores: Scores
    result: dict[str, Any]
    out: Path


def evaluate_run(config: Config, *, manifest: dict[str, Any], checkpoint: Path, out: Path) -> dict[str, Any] | None:
    """Evaluate a checkpoint under the configuration's protocol, and write scores and result.json to the folder `out`.

    manifest: that of the prepared data. In a process group all processes must call this, and all but the first get
    None; without a group, it starts hardware.devices processes. Raises UserError if weights do not fit the network,
    scores are not finite, or the data has changed since its preparation.
    """
    found = evaluate_targets([EvaluationTarget(config, checkpoint, manifest, out)])
    return found[0].result if found else None


def evaluate_targets(targets: Sequence[EvaluationTarget]) -> list[Evaluated]:
    """Evaluate all targets and, if there are several, their ensemble, which comes last in the list.

    The list is empty on all processes of a group but the first.
    """
    # Join first: ranks may see different files on a network share, so rank 0 alone looks and decides for all.
    with joined_launched():
        if not _is_first_rank() and not dist.is_initialized():
            return []  # after a complete run, another rank of a launcher, without a process group
        _raise_on_all_ranks(_unwritable(_ensemble_files(targets)))
        found = [evaluated for target in targets if (evaluated := _evaluate(target)) is not None]
        return [*found, _evaluate_ensemble(targets, found)] if len(found) > 1 else found


def _evaluate(target: EvaluationTarget) -> Evaluated | None:
    # Weights come first: every other step depends on the preprocessing that they bring.
    path = target.path
    weights = load_weights(path, ema=target.config.ema)
    network = build_model(target.config.model, num_classes=target.num_classes)
    config, source = with_preprocessing(target, network, weights)
    name, by = config.model.name, config.weights_by
    pairs = apply_weights(network, weights.state, source=str(path), name=name, num_classes=target.num_classes, by=by)
    # normalization=dataset means the data that the network was trained on, not the data it is evaluated on.
    split = open_val_split(config)  # on all processes, so that broken data stops all of them
    statistics = statistics_of(weights, path) or split.statistics
    mean, std = mean_and_std(config.normalization, statistics)
    mean_image = mean_image_of(config, statistics, size=config.protocol.size)
    if _is_first_rank() and (target.is_published or config.weights is not None):
        print(*pair_lines(pairs, path.name, config.model.name), sep="\n", end="\n" if pairs else "")
        print(preprocessing_line(path.name, config, mean, std, source), flush=True)
    index = evaluated_index(config, split)
    is_subset = len(index) < split.num_samples
    # The file of the result names the mean image by its digest; the image itself is in the checkpoint.
    mean_facts = {} if mean_image is None else {"mean_image_sha256": array_sha256(mean_image)}
    used = {"mean": mean, "std": std, **mean_facts}
    changed = changed_normalization(used, _trained_normalization(weights.metadata), target.typed)
    used |= {"changed_normalization": changed} if changed else {}
    # What the scores depend on. Saved scores are reused only if all of it is equal.
    identity = {
        "protocol": protocol_text(config.protocol),
        "model": config.model.name,
        "model_kwargs": json.dumps(config.model.kwargs, sort_keys=True),
        **({"blur_pool": "true"} if config.model.blur_pool else {}),  # visualization/tradeoff.py counts its cost
        "weights": weights.kind,
        "weights_sha256": weights_sha256(network.state_dict()),
        "data": config.data.name,
        "source_fingerprint": evaluated_fingerprint(split, index),
        "normalization": json.dumps(used),
        "precision": config.training.precision,
        "code_sha256": code_sha256(PACKAGE, SCORING),
        "allow_tf32": json.dumps(set_precision(config.training.precision)),
        **({"loader": "ffcv"} if config.data.loader == "ffcv" else {}),  # only ffcv decodes to other pixels
        **({"subset": f"{len(index):,} of {split.num_samples:,} images"} if is_subset else {}),
        **({"split_fingerprint": split.source_fingerprint} if is_subset else {}),  # to find the images' names
    }
    digest = _short_hash(identity["weights_sha256"], identity["source_fingerprint"])
    # The hash of weights and data in the folder's name keeps other weights of the same model from overwriting these.
    out = target.out or EVALUATIONS / f"{config.model.name.replace('/', '-')}-{digest}"
    # Only our own checkpoints are "last" or "best"; the name of a downloaded file says nothing of that kind.
    stem = file_stem(
        config,
        weights.kind,
        path.stem if weights.metadata else "last",
        precision=target.own_precision,
        normalization=_short_hash(identity["normalization"]) if changed else None,
        subset=subset_hash(index) if is_subset else None,
    )
    # Only rank 0 reads saved scores (400 MB for ImageNet) and decides; the others get its decision.
    scores = refusal = None
    if _is_first_rank():
        # In a read-only folder, such as a colleague's run, scores of other code are better than an error.
        file, is_read_only = out / f"{stem}.safetensors", out.is_dir() and not os.access(out, os.W_OK)
        options: dict[str, Any] = {
            "labels": split.labels[index],
            "with_views": config.save_views,
            "of_any_code": is_read_only,
        }
        scores = saved_scores(file, identity, **options)
        if scores is not None and scores.metadata["code_sha256"] != identity["code_sha256"]:
            print(f"{file}: computed by another version of the code; its folder is read-only", file=sys.stderr)
        refusal = None if scores is not None else _unwritable([file, out / f"{stem}.result.json"])
    _raise_on_all_ranks(refusal)
    # All or none: a rank that scored alone would wait in `gather` for ranks that read a file.
    is_saved = _broadcast_decision(scores is not None)
    if not is_saved:
        check_scorable(network, config)
        task = ScoringTask(config, path, weights.kind, target.num_classes, mean, std, identity, mean_image)
        scores = score_split(task, network, out)
    if scores is None:
        return None
    origin = {**used, "preprocessing": source, **_origin(target, weights.metadata)}
    return _save(scores, config, out, stem, is_saved=is_saved, **origin)


def _ensemble_files(targets: Sequence[EvaluationTarget]) -> list[Path]:
    """Files that an ensemble will write in any case; checked for writability before the first target is scored."""
    if len(targets) < 2:
        return []
    config, outs = targets[0].config, [target.out for target in targets if target.out is not None]
    joint = EVALUATIONS if config.output is None else Path(config.output)
    folders = [joint, *(out for out in outs if not any(out.glob("[!.]*.safetensors")))]
    return [folder / "scores.safetensors" for folder in folders]


def _unwritable(paths: Sequence[Path]) -> UserError | None:
    """Why one of the files cannot be written; None if all can, and on every rank but the first."""
    try:
        if _is_first_rank():
            check_writable(*paths, remedy=REMEDY)
    except UserError as error:
        return error
    return None


def _raise_on_all_ranks(refusal: UserError | None) -> None:
    """Raise rank 0's error on rank 0, and exit the others with its exit code, as they would wait for it forever."""
    if _broadcast_decision(refusal is not None):
        raise refusal or SystemExit(2)


def _trained_normalization(metadata: dict[str, Any]) -> dict[str, Any]:
    """What the training of one of our checkpoints subtracted and divided by; empty for other files."""
    if not metadata:
        return {}
    image = metadata.get("mean_image")
    facts = {} if image is None else {"mean_image_sha256": array_sha256(image)}
    return {"mean": metadata["mean"], "std": metadata["std"], **facts}


def _origin(target: EvaluationTarget, metadata: dict[str, Any]) -> dict[str, Any]:
    """Where the weights come from, for result.json. metadata: that of our own checkpoints, else empty."""
    path, config = target.path, target.config
    if not metadata:
        return {"checkpoint": str(path), "label": path.name, "selection": None, "seed": None}
    label = f"{config.name or config.model.name} seed {metadata['seed']}"
    if metadata["step"] < metadata["total_steps"]:
        label += f", step {metadata['step']} of {metadata['total_steps']}"
    return {
        "checkpoint": str(path),
        "label": label,
        "selection": "best" if path.stem == "best" else "last",
        **{key: metadata[key] for key in ("seed", "step", "total_steps")},
        "run_id": metadata.get("run_id"),  # checkpoints of earlier code have none
    }


def _evaluate_ensemble(targets: Sequence[EvaluationTarget], found: Sequence[Evaluated]) -> Evaluated:
    names, results = [str(target.path) for target in targets], [one.result for one in found]
    stem = joint_stem(Path(result["scores"]).stem for result in results)
    return _save_ensemble([one.scores for one in found], results, names, targets[0].config, stem)


def evaluate_scores(config: Config, paths: Sequence[Path]) -> Evaluated:
    """Average saved score files and write scores and result of the ensemble. Needs neither network nor data.

    Raises UserError if a file is missing, broken or listed twice, or if the files are not of the same images.
    """
    members = [load_scores(path) for path in paths]
    for path, member in zip(paths, members, strict=True):
        if is_ensemble(member):
            raise UserError(f"{path}: is the mean of several members; list those instead, so that each counts once")
    results = [_result_beside(path, member) for path, member in zip(paths, members, strict=True)]
    stem = joint_stem(path.stem for path in paths)
    return _save_ensemble(members, results, [str(path) for path in paths], config, stem)


def _save_ensemble(
    members: Sequence[Scores], results: Sequence[dict[str, Any]], names: Sequence[str], config: Config, stem: str
) -> Evaluated:
    # In an order of their own: the last bits of the mean, and so its ties, depend on it, as does the folder's name.
    triples = sorted(zip(members, results, names, strict=True), key=lambda one: _ensemble_key(one[0]))
    members, results, names = zip(*triples, strict=True)
    joint = ensemble(members, names=names)
    facts = ensemble_facts(members, results, config.protocol.average)
    # Named by content: the same weights under other paths are the same ensemble.
    # The protocol too, since the same networks under other protocols are another ensemble.
    hashes = [text for member in members for text in _ensemble_key(member)]
    name = f"ensemble-{_short_hash(*hashes, joint.metadata['source_fingerprint'])}"
    out = Path(config.output) if config.output is not None else EVALUATIONS / name
    return _save(joint, config, out, stem, **facts)


def _ensemble_key(member: Scores) -> tuple[str, ...]:
    return tuple(member.metadata[key] for key in ("weights_sha256", "protocol"))


def _result_beside(path: Path, scores: Scores) -> dict[str, Any]:
    """The result of a score file in the same folder; empty if there is none, or only one of other weights."""
    # One score file has two results, one for each average. Either knows the checkpoint and the seed.
    for file in (path.with_name(f"{path.stem}{ending}.result.json") for ending in ("", "-logits")):
        if file.exists() and (result := load_result(file))["weights_sha256"] == scores.metadata["weights_sha256"]:
            return result
    return {}


def _save(
    scores: Scores,
    config: Config,
    out: Path,
    stem: str,
    *,
    is_saved: bool = False,
    **origin: Any,
) -> Evaluated:
    """Write the score file and result.json. Raises UserError, and writes nothing, if scores are not finite."""
    # Counts the errors first: a score file with NaN must never exist, because later commands would reuse it.
    result = result_of(scores, config, scores=f"{stem}.safetensors", **origin)
    if not is_saved:
        save_scores(out / f"{stem}.safetensors", scores)
    if not is_saved or os.access(out, os.W_OK):  # saved results are also shown from a read-only folder
        save_result(out / f"{result_name(result)}.result.json", result)
    return Evaluated(scores, result, out)


def _is_first_rank() -> bool:
    return dist.get_rank() == 0 if dist.is_initialized() else is_first_process()


def _broadcast_decision(decision: bool) -> bool:
    """Rank 0's decision, on all ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return decision
    # A gloo group for one flag in host memory: the default group may be NCCL, which takes GPU tensors only.
    flag = torch.tensor([decision])
    with cpu_group() as group:
        dist.broadcast(flag, src=0, group=group)
    return bool(flag)


def _short_hash(*texts: str) -> str:
    # 32 bits are enough to name folders; the score files contain the full hashes.
    return hashlib.sha256(" ".join(texts).encode()).hexdigest()[:8]
