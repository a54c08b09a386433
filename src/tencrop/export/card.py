"""Writes the text of the model card: README.md with the YAML front matter that the Hugging Face Hub reads.

export/export.py calls this. Nothing is uploaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from tencrop.config import learning_hash, learning_keys
from tencrop.config.recipes import guesses_of, recipe_line
from tencrop.evaluation.results import differences_from_training, protocol_label
from tencrop.export.commands import evaluate_command
from tencrop.export.source import FILES, ExportSource
from tencrop.models.weights import MEAN_IMAGE_FILE, MEAN_IMAGE_TENSOR, Weights
from tencrop.printable import printable
from tencrop.records.provenance import sessions_of
from tencrop.report.claims import claims_of_run
from tencrop.text_tables import markdown_table

# data.name -> name of the data set on the Hub
HUB_DATA = {"imagenet": "imagenet-1k", "cifar10": "cifar10", "mnist": "mnist"}
# Code that a reader of the card copies. FOLDER_OF_THIS_FILE stays a placeholder, because the folder will be moved or
# uploaded.
LOADING = {
    "safetensors": (
        "import timm\n"
        "from timm.data import create_transform, resolve_data_config\n\n"
        'network = timm.create_model("local-dir:FOLDER_OF_THIS_FILE", pretrained=True).eval()\n'
        "transform = create_transform(**resolve_data_config(pretrained_cfg=network.pretrained_cfg))\n"
        # ImageNet has grayscale and CMYK files, and timm's normalization needs three channels.
        'logits = network(transform(image.convert("RGB"))[None])'
    ),
    "torch_export": 'network = torch.export.load("model.pt2").module()\nlogits = network(images)',
    "onnx": (
        'session = onnxruntime.InferenceSession("model.onnx")\n'
        '(logits,) = session.run(["logits"], {"images": images})  # numpy, float32'
    ),
}


def model_card(
    source: ExportSource,
    weights: Weights,
    results: Sequence[Mapping[str, Any]],
    preprocessing: Mapping[str, Any],
    *,
    is_timms: bool,
) -> str:
    """The text of README.md. results: those of exactly these weights; preprocessing: `preprocessing_of_run`."""
    # timm has no place for a mean image, so there is no config.json from which it builds the network
    timm_builds = is_timms and source.format == "safetensors" and "mean_image" not in preprocessing
    sections = [
        f"---\n{_front_matter(source, results, is_timms=is_timms, timm_builds=timm_builds)}\n---",
        f"# {source.label}\n\n{_summary(source, weights)}",
        f"## Error\n\n{_errors(source, results)}",
        f"## Preprocessing\n\n{_preprocessing(source, preprocessing)}",
        f"## Use\n\n{_use(source, results, preprocessing, is_timms=is_timms, timm_builds=timm_builds)}",
        f"## Data\n\n{_data(source)}",
        f"## Recipe\n\n{_recipe(source)}",
        "## License\n\nNot stated here. Choose one before you publish these weights.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(
    source: ExportSource, results: Sequence[Mapping[str, Any]], *, is_timms: bool, timm_builds: bool
) -> str:
    # metric_name includes the protocol: otherwise a ten-crop accuracy would look like a single-crop one.
    data = source.manifest["data"]["name"]
    measured = [
        EvalResult(
            task_type="image-classification",
            dataset_type=HUB_DATA.get(data, data),
            dataset_name=data,
            dataset_split="validation",
            metric_type="accuracy",
            metric_name=f"top-{k}, {protocol_label(dict(result))}",
            # 0.0001 points: a single image of 50,000 is 0.002 points, so rounding never changes the count.
            metric_value=round(100 * (1 - result[f"top{k}_error"]), 4),
        )
        for result in results
        for k in (1, 5)
    ]
    card = ModelCardData(
        library_name="timm" if timm_builds else None,
        pipeline_tag="image-classification",
        tags=["image-classification", "tencrop", *(["timm"] if is_timms else [])],
        datasets=[HUB_DATA[data]] if data in HUB_DATA else None,
        # Without results, huggingface_hub would write it as a key of its own instead of into model-index.
        model_name=source.label if measured else None,
        eval_results=measured or None,
    )
    return card.to_yaml()


def _summary(source: ExportSource, weights: Weights) -> str:
    config, trained = source.config, weights.metadata
    recipe = f"the recipe `{config.name}`" if config.name else "a recipe without a name"
    kind = "their exponential moving average (EMA)" if weights.kind == "ema" else "the trained weights, not an average"
    return (
        f"`{config.model.name}` with {len(source.classes):,} classes, trained by tencrop {source.manifest['tencrop']}"
        f" with {recipe}, seed {trained['seed']}: step {trained['step']:,} of {trained['total_steps']:,}."
        f" `{FILES[source.format]}` has {kind}."
    )


def _errors(source: ExportSource, results: Sequence[Mapping[str, Any]]) -> str:
    if not results:
        return "Not measured for these weights."
    config = dataclasses.asdict(source.config)
    rows = []
    for result in results:
        # An error in float32 of a run trained in bfloat16 is not the run's own: what differs from training is named
        # beside it.
        protocol = ", ".join([protocol_label(dict(result)), *differences_from_training(result, config)])
        cells = [f"{result['num_images']:,}"]
        for k in (1, 5):
            low, high = result[f"top{k}_interval"]
            cells += [f"{100 * result[f'top{k}_error']:.2f}", f"{100 * low:.2f} – {100 * high:.2f}"]
        rows.append([protocol, *cells])
    head = ["protocol", "images", "top-1 error %", "95% interval", "top-5 error %", "95% interval"]
    about = "Wilson's interval for the number of images; it does not cover the variation between seeds."
    return f"{markdown_table(head, rows, left=[0])}\n{about}"


def _preprocessing(source: ExportSource, written: Mapping[str, Any]) -> str:
    # The way to resize is not among the keys that an export stores (weights.PREPROCESSING_SHAPE).
    side, size, resize = written["side"], written["size"], source.config.protocol.resize
    rescaled = {
        "shorter_side": "keep the size" if side is None else f"rescale the shorter side to {side} pixels",
        "warp": f"stretch to {side} x {side} pixels",
        "central_fraction": f"take the central 87.5% of both sides and stretch it to {size} x {size} pixels",
    }[resize]
    lines = [
        f"RGB; {rescaled} ({written['filter']}, as Pillow); crop the central {size} x {size} pixels",
        f"{_subtraction(written)}; divide by {_numbers(written['std'])} per channel",
        f"float32 [N, 3, {size}, {size}] in, logits [N, {len(source.classes)}] out",
    ]
    # timm crops after it has rescaled; here the crop comes first.
    if resize == "central_fraction":
        lines.append("timm's transforms have no such crop: config.json states another one")
    return "\n".join(f"- {line}" for line in lines)


def _subtraction(written: Mapping[str, Any]) -> str:
    if "mean_image" not in written:
        return f"on [0, 255]: subtract {_numbers(written['mean'])} per channel"
    tensor = f"`{MEAN_IMAGE_TENSOR}` [height, width, RGB] of `{MEAN_IMAGE_FILE}`"
    if written["mean_image"]["use"] == "image_center":
        return f"on [0, 255]: subtract {tensor} from every crop; mirror it for a mirrored crop"
    return f"on [0, 255]: subtract the part of {tensor} at the place of the crop: its center from a central crop"


def _use(
    source: ExportSource,
    results: Sequence[Mapping[str, Any]],
    preprocessing: Mapping[str, Any],
    *,
    is_timms: bool,
    timm_builds: bool,
) -> str:
    parts = []
    if source.format != "safetensors" or timm_builds:
        parts.append(f"```python\n{LOADING[source.format]}\n```")
    if source.format == "safetensors":
        names = "timm's" if is_timms else "those of tencrop's network"
        parts.append(f"The names of the tensors are {names}. tencrop evaluates the file; the errors are those above:")
        # One command a result, so that every number of the table above can be measured again.
        commands = [evaluate_command(source.config, result, preprocessing) for result in results]
        parts.append(
            "```sh\n" + "\n".join(commands or [evaluate_command(source.config, None, preprocessing)]) + "\n```"
        )
    return "\n\n".join(parts)


def _data(source: ExportSource) -> str:
    data = source.manifest["data"]
    rows = [
        [split, f"{data['splits'][split]['num_samples']:,}", data["splits"][split]["source_fingerprint"]]
        for split in ("train", "val")
    ]
    table = markdown_table(["split", "images", "SHA-256 over files and labels"], rows, left=[0, 2])
    return f"`{data['name']}`, {len(data['classes']):,} classes; errors are of `val`.\n\n{table}".rstrip()


def _recipe(source: ExportSource) -> str:
    # With allow_other_code=true, sessions may have had different code. The last one is the one to check out.
    config, code = source.config, sessions_of(source.manifest)[-1]["code"]
    values = dataclasses.asdict(config)
    guesses = "\n".join(f"- `{key}: {_value(values, key)}`" for key in guesses_of(config))
    claims = claims_of_run(values, source.manifest["data"])
    claim = (
        f"Published results with this recipe: {'; '.join(claim.source for claim in claims)}."
        if claims
        else "No published result in tencrop's tables uses this recipe on these data."
    )
    revision = code["revision"] or f"not known ({code.get('installed') or code.get('not_known') or 'outside git'})"
    # An empty list of guesses means two things: the source states everything, or nobody recorded them.
    none = (
        "No value is marked as a guess."
        if config.recipe
        else "The version of tencrop that trained it did not record guesses."
    )
    parts = [
        claim,
        *([recipe_line(config) or ""] if config.recipe else []),
        f"Values that its source does not state (guesses):\n\n{guesses}" if guesses else none,
        f"Learning hash {learning_hash(config)}; code {revision}, {code['learning_sha256'][:12]}.",
        f"```yaml\n{yaml.safe_dump(learning_keys(config), sort_keys=False, default_flow_style=None, width=110)}```",
    ]
    # Claims and notes quote configurations, which may be a stranger's.
    return "\n\n".join(map(printable, parts))


def _value(values: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
