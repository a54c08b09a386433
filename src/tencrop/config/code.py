"""Hashes of the package's own source, so that a run or saved scores can tell which version of it wrote them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import tencrop

PACKAGE = Path(tencrop.__file__).resolve().parent

# What decides the network's input, from the stored image to the tensor, and its output.
_INPUT_AND_NETWORK = (
    "config/schema.py",
    "data/augmentation",
    "data/loading",
    "data/native",
    "data/sampling",
    "data/store",
    "models",
    "training/precision.py",
)
# What decides the final weights of a run. A change to any of these files makes a run refuse to continue without
# allow_other_code=true, so a file that only reports or checks does not belong here: rewording a progress line must not
# stop every job of a cluster. tests/config/test_code.py compares the two lists with the imports.
LEARNING = (
    *_INPUT_AND_NETWORK,
    "config/batches.py",
    "distributed/collectives.py",
    "training/batchnorm.py",
    "training/checkpoints.py",
    "training/classifier.py",
    "training/compilation.py",
    "training/data_module.py",
    "training/determinism.py",
    "training/distillation.py",
    "training/dropout.py",
    "training/ema.py",
    "training/error_counts.py",
    "training/fit.py",
    "training/freezing.py",
    "training/initial_weights.py",
    "training/kernel_rms.py",
    "training/layer_decay.py",
    "training/losses.py",
    "training/optimizers.py",
    "training/schedules.py",
)
# Imported by the files above, but without effect on the weights: these files check, find, report or write something.
NOT_LEARNING = (
    "cli",
    "config/__init__.py",
    "config/build.py",
    "config/code.py",
    "config/command_schemas.py",
    "config/constraints.py",
    "config/cores.py",
    "config/disk_errors.py",
    "config/documents.py",
    "config/fields.py",
    "config/initialization.py",
    "config/launcher.py",
    "config/loader.py",
    "config/protocol_rules.py",
    "config/recipe_rules.py",
    "config/recipes.py",
    "config/rules.py",
    "config/run_config.py",
    "config/run_id.py",
    "config/tracker.py",
    "config/writable.py",
    "config/yaml_files.py",
    "data/__init__.py",
    "data/preparation",
    "data/sources",
    "distributed/__init__.py",
    "distributed/cluster.py",
    "distributed/gpus.py",
    "distributed/launch.py",
    "distributed/liveness.py",
    "distributed/rendezvous.py",
    "files.py",
    "printable.py",
    "signals.py",
    "training/__init__.py",
    "training/divergence.py",
    "training/lightning_loop.py",
    "training/metric_rows.py",
    "training/monitors.py",
    "training/out_of_memory.py",
    "training/probe.py",
    "training/progress.py",
)
# What decides a score. If any of these files changed since scores were saved, evaluate.py computes them again.
SCORING = (*_INPUT_AND_NETWORK, "evaluation", "training/losses.py")


def code_sha256(package: Path, paths: Iterable[str]) -> str:
    """SHA-256 in hex over the Python and C files at or below some paths of `package`, with git or without."""
    digest = hashlib.sha256()
    for path in source_files(package, paths):
        content = (package / path).read_bytes()
        # With name and length in front of each file, moving lines between files changes the digest.
        digest.update(f"{path.as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def source_files(package: Path, paths: Iterable[str]) -> list[Path]:
    """The Python and C files at or below some paths, relative to `package` and sorted."""
    # A path is a file or a folder: the file itself, and everything below the folder.
    found = [file for path in paths for file in (package / path, *(package / path).rglob("*"))]
    relative = {file.relative_to(package) for file in found if file.suffix in (".py", ".c", ".h") and file.is_file()}
    # editors and macOS leave hidden files; Python imports none of them
    return sorted(path for path in relative if not any(part.startswith(".") for part in path.parts))
