"""Exports a checkpoint: writes the network, its model card and timm's config.json into one new folder."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tencrop.config.disk_errors import disk_sentence
from tencrop.config.schema import UserError
from tencrop.evaluation.results import load_result
from tencrop.export.card import model_card
from tencrop.export.formats import write_mean_image, write_network
from tencrop.export.preprocessing import is_timms, preprocessing_of_run, timm_config
from tencrop.export.source import FILES, ExportSource
from tencrop.files import partial_name, sync_folder
from tencrop.models.checkpoint_files import weights_sha256
from tencrop.models.factory import create_network
from tencrop.models.weights import MEAN_IMAGE_FILE, apply_weights, load_weights


class Exported(NamedTuple):
    """What was written, and what is known of its error."""

    files: list[Path]
    results: list[dict[str, Any]]  # result.json of these weights, one for each evaluated protocol


def export(source: ExportSource) -> Exported:
    """Write the folder `source.out`, which must not exist; all of it or nothing.

    Raises UserError if the checkpoint is damaged, or the file gives other outputs than the network.
    """
    weights = load_weights(source.checkpoint, ema=source.ema)
    config = source.config
    # create_network and not build_model, whose hooks for autocast would be exported, too; in float32 they do nothing
    network = create_network(config.model, num_classes=len(source.classes)).eval()
    apply_weights(network, weights.state, source=str(source.checkpoint), name=config.model.name)
    results = results_of(source.run_dir, weights_sha256(network.state_dict()), weights.kind)
    written = preprocessing_of_run(config, weights.metadata, f"the export of {source.label}")
    with _new_folder(source.out) as folder:
        file = folder / FILES[source.format]
        if "mean_image" in written:
            write_mean_image(weights.metadata["mean_image"], folder / MEAN_IMAGE_FILE)
        write_network(network, file, format=source.format, preprocessing=written, name=config.model.name)
        # timm's configuration has one mean per channel: with it, timm would predict other classes and say nothing
        is_timm = is_timms(network, config.model)
        if is_timm and source.format == "safetensors" and "mean_image" not in written:
            (folder / "config.json").write_text(timm_config(network, config, source.classes, written))
        card = model_card(source, weights, results, written, is_timms=is_timm)
        (folder / "README.md").write_text(card, encoding="utf-8")
        # Listed here and not afterwards: the block's end renames the folder.
        names = sorted(path.name for path in folder.iterdir())
    return Exported([source.out / name for name in names], results)


def results_of(run_dir: Path, weights_sha256: str, kind: str) -> list[dict[str, Any]]:
    """The verified results of a run for exactly these weights, by file name."""
    results = [load_result(path) for path in sorted((run_dir / "predictions").glob("[!.]*.result.json"))]
    # By hash and not by file name: results of a former training, or of best.ckpt, lie in the same folder.
    return [one for one in results if (one["weights_sha256"], one["weights"]) == (weights_sha256, kind)]


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that gets its name at the end of the block, after fsync; removed on an error."""
    partial = partial_name(out.with_name(f"{out.name}.{os.getpid()}-{secrets.token_hex(4)}"))
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in (*partial.iterdir(), partial):
            sync_folder(path)  # os.fsync takes files and folders alike
        os.rename(partial, out)  # fails if another export has made it in the meantime
    except OSError as error:
        error.filename = error.filename or str(out)
        raise UserError(disk_sentence(error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_folder(out.parent)
