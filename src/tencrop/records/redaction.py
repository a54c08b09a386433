"""Masks credentials in everything that is written down: command lines, URLs, configurations, diffs.

Called by provenance and tracking. Environment variables are never written; the values of those
that look like credentials are only used to recognize them elsewhere.
"""

from __future__ import annotations

import netrc
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MASK = "***"
_NAME = re.compile(r"(.*[._-])?(api_?key|access_?key|key|token|secret|password|passwd|credentials?)", re.IGNORECASE)
_USER_IN_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@]+@", re.IGNORECASE)
_SHAPES = re.compile(  # of tokens that say what they are: GitHub, Hugging Face, GitLab, wandb, AWS
    r"\b(gh[pousr]_\w{20,}|github_pat_\w{20,}|hf_\w{20,}|glpat-[\w-]{20,}|wandb_v\d_[\w-]{20,}|AKIA[A-Z0-9]{16})\b"
)
_PLAIN = {"", "true", "false", "null", "none", MASK}
_SHORTEST = 8  # characters; shorter values of the environment are words such as "yes"


def redact_text(text: str) -> str:
    """`text` without credentials in URLs, tokens of known shape, and the values of this machine's credentials."""
    for secret in _known_secrets():
        text = text.replace(secret, MASK)
    return _SHAPES.sub(MASK, _USER_IN_URL.sub(rf"\1{MASK}@", text))


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line; besides `redact_text`, NAME=VALUE and --NAME VALUE lose the value where NAME is a credential."""
    masked: list[str] = []
    hide_next = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        is_secret = _is_secret_name(name.lstrip("-+"))
        if hide_next:
            masked.append(MASK)
        elif equals and is_secret and value.lower() not in _PLAIN:
            masked.append(f"{name}={MASK}")
        else:
            masked.append(redact_text(argument))
        hide_next = is_secret and not equals and argument.startswith("-")
    return masked


def redact_values(values: Any) -> Any:
    """A configuration of mappings, sequences and scalars, masked by key and by text; the rest is unchanged."""
    if isinstance(values, Mapping):
        return {key: _mask_entry(str(key), value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [redact_values(value) for value in values]
    return redact_text(values) if isinstance(values, str) else values


def _mask_entry(key: str, value: Any) -> Any:
    if isinstance(value, str) and _is_secret_name(key) and value.lower() not in _PLAIN:
        return MASK
    return redact_values(value)


def _is_secret_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def _known_secrets() -> Iterator[str]:
    for name, value in os.environ.items():
        if _is_secret_name(name) and len(value) >= _SHORTEST:
            yield value
    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return
    yield from (password for _, _, password in hosts.values() if password and len(password) >= _SHORTEST)
