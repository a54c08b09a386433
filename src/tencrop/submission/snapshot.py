"""The snapshot of the code from which a job runs: all files of the checkout that determine a run.

code-HASH/            HASH is of the names and contents below
    src, conf, slurm, *.py, ...     tracked files, untracked files that git does not ignore, compiled modules
    .venv                           a link to the environment that submitted, whose packages are not copied
    slurm/cluster.sh                modules and variables of conf/cluster, sourced by slurm/environment.sh
    snapshot.json, code.diff        revision and uncommitted changes, for the records of the run
    packages.json                   versions of the packages, which the job compares (commands/check_packages.py)
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tencrop.config import UserError
from tencrop.config.code import PACKAGE
from tencrop.files import sync_folder
from tencrop.records.provenance import (
    DIFF_FILE,
    SNAPSHOT_FILE,
    GitFailed,
    code_diff,
    code_files,
    code_version,
    installed_packages,
)

ROOT = PACKAGE.parents[1]
CLUSTER_FILE = "slurm/cluster.sh"
PACKAGES_FILE = "packages.json"


def snapshot_files(cluster_script: str, root: Path = ROOT) -> dict[str, bytes]:
    """The content of a snapshot by path, 2 MB. Raises UserError if this is not a git checkout."""
    if not (root / "slurm" / "train.sbatch").is_file():
        raise UserError(f"{root}: has no slurm/train.sbatch; submit with a checkout of tencrop, and not with a wheel")
    try:
        names = code_files()
    except GitFailed as error:
        raise UserError(f"{root}: the files to submit are not known, because {error}") from error
    # git ignores these, and the job cannot build them: compute nodes often have no compiler.
    compiled = [path.relative_to(root).as_posix() for path in (root / "src").rglob("*.so")]
    # Without our own: whether an installation of it is found depends on the folder, and its code is in the snapshot.
    packages = {name: version for name, version in installed_packages().items() if name != "tencrop"}
    # A tracked file may have been deleted.
    files = {name: (root / name).read_bytes() for name in sorted({*names, *compiled}) if (root / name).is_file()}
    return files | {
        CLUSTER_FILE: cluster_script.encode(),
        SNAPSHOT_FILE: (json.dumps(code_version(), indent=1) + "\n").encode(),
        DIFF_FILE: code_diff().encode(),
        PACKAGES_FILE: (json.dumps(packages, indent=1) + "\n").encode(),
    }


def snapshot_folder(parent: Path, files: Mapping[str, bytes]) -> Path:
    """code-HASH in `parent`: the same code shares a snapshot, and other code never gets into an existing one."""
    # The length keeps names and contents apart: otherwise bytes could move from one file to the next unnoticed.
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    # 12 hex digits keep paths short. A collision does no harm: write_snapshot compares the contents.
    return parent.absolute() / f"code-{digest.hexdigest()[:12]}"


def write_snapshot(folder: Path, files: Mapping[str, bytes], root: Path = ROOT) -> bool:
    """Write the snapshot, as a whole or not at all; returns whether this call has created it.

    Raises UserError if there is one that was changed.
    """
    if folder.exists():
        _check_unchanged(folder, files)
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        partial.chmod(0o777 & ~_umask())  # mkdtemp's is for the user alone, and another may reproduce the run
        for name, content in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
            if (root / name).exists():
                shutil.copymode(root / name, partial / name)  # train.sbatch is executed by seeds.sbatch
        # A link: an environment with torch has gigabytes. The job compares its packages with PACKAGES_FILE.
        (partial / ".venv").symlink_to(sys.prefix)
        os.rename(partial, folder)  # complete or not there
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        # Another submission has written the same code in the meantime.
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST) and folder.exists():
            _check_unchanged(folder, files)
            return False
        raise
    sync_folder(folder.parent)
    return True


def _check_unchanged(folder: Path, files: Mapping[str, bytes]) -> None:
    # The bytes and not their times: `touch` or a restored backup is no change.
    changed = [name for name, content in files.items() if not _has(folder / name, content)]
    if changed:
        raise UserError(
            f"{folder / changed[0]}: is not the file that was submitted; end the jobs that use this snapshot, and"
            " delete it"
        )


def _has(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _umask() -> int:
    # The only portable way to read it is to set it. Not safe with threads that create files; this process has none.
    value = os.umask(0)
    os.umask(value)
    return value
