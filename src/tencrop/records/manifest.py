"""Types of a run's manifest.json. run_folder.py writes and reads it, and checks the fields that readers use.

Keys that are `NotRequired` are missing where they do not apply, or in runs of earlier code.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict


class Code(TypedDict):
    """The version of the code; see provenance.code_version."""

    revision: str | None
    remote: NotRequired[str | None]
    diff_sha256: str | None
    learning_sha256: str
    not_known: NotRequired[str]
    installed: NotRequired[str]


class Hardware(TypedDict):
    """The machine of a session."""

    host: str
    system: str
    cpu: str
    num_cores: int
    memory_bytes: int
    gpus: list[str]
    gpu_memory_bytes: list[int]
    cuda: str | None
    cudnn: int | None
    num_torch_threads: int
    not_known: NotRequired[str]


class Session(TypedDict):
    """One process that trained in the folder; see provenance.session."""

    started: str
    command: str
    code: Code
    hardware: Hardware
    packages: NotRequired[dict[str, str]]  # by name; sessions_of gives it in any case
    allow_tf32: NotRequired[dict[str, bool]]
    layout: NotRequired[str]  # of the global batch on devices, in words


class Split(TypedDict):
    """What identifies the images of a prepared split."""

    num_samples: int
    source_fingerprint: str
    store_fingerprint: str


class RunData(TypedDict):
    """The prepared data of a run; see provenance.data_facts."""

    name: str
    root: str
    splits: dict[str, Split]
    classes: list[str]


class Hashes(TypedDict):
    """SHA-256 of the weights, and of their EMA; None before the first checkpoint, or without EMA."""

    weights_sha256: str | None
    ema_sha256: str | None


class Outcome(Hashes):
    """How training ended: status is running, complete, interrupted or diverged."""

    status: str
    metrics_digest: NotRequired[str | None]
    ended_with: NotRequired[Hashes]


class Origin(TypedDict):
    """What is known at the start of a run."""

    tencrop: str
    name: str
    model: str
    seeds: dict[str, int]
    data: RunData
    # what training.init loaded: `checkpoint`, its path; `weights`, raw or ema; and their `weights_sha256`
    init: NotRequired[dict[str, str]]
    teacher: NotRequired[dict[str, str]]  # the same of the teacher of training.distill


class Provenance(Origin):
    """The same, and the session that begins."""

    session: Session


class RunManifest(Origin):
    """The content of manifest.json."""

    run_id: NotRequired[str]  # earlier code wrote none of these three
    total_steps: NotRequired[int | None]
    config_sha256: NotRequired[str]
    sessions: list[Session]
    result: Outcome
    packages: NotRequired[dict[str, str]]  # of the first session; written by earlier code
