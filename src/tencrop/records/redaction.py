"""Redacts credentials from everything that a run records or uploads: command lines, URLs, configurations, diffs.

Environment variables are never recorded. The values of those that look like credentials are only used to find and
redact them elsewhere.
"""

from __future__ import annotations

import netrc
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import overload

MASK = "***"
# Names of credentials: api_key, WANDB_API_KEY, my-token, but not monkey: the word must follow . _ - or the beginning.
_NAME = re.compile(r"(.*[._-])?(api_?key|access_?key|key|token|secret|password|passwd|credentials?)", re.IGNORECASE)
# https://USER:TOKEN@host, as in a git remote or a proxy. The user alone may be a token, so both are redacted.
_USER_IN_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@]+@", re.IGNORECASE)
_SHAPES = re.compile(  # tokens with a known prefix: GitHub, Hugging Face, GitLab, wandb, AWS
    r"\b(gh[pousr]_\w{20,}|github_pat_\w{20,}|hf_\w{20,}|glpat-[\w-]{20,}|wandb_v\d_[\w-]{20,}|AKIA[A-Z0-9]{16})\b"
)
_PLAIN = {"", "true", "false", "null", "none", MASK}  # values that cannot be credentials, whatever the key
# Characters. Shorter values of environment variables are words such as "yes", whose redaction would garble the text.
_SHORTEST = 8


def redact_text(text: str) -> str:
    """Redact credentials in URLs, tokens with a known prefix, and the values of this machine's own credentials."""
    # Exact values first: they have no recognizable shape, and may occur in any place, such as a path.
    for secret in _known_secrets():
        text = text.replace(secret, MASK)
    return _SHAPES.sub(MASK, _USER_IN_URL.sub(rf"\1{MASK}@", text))


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """Redact a command line: `redact_text`, and the value in NAME=VALUE and --NAME VALUE if NAME is a credential."""
    masked: list[str] = []
    hide_next = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        # + as in Hydra's +api_key=VALUE
        is_secret = _is_secret_name(name.lstrip("-+"))
        if hide_next:
            masked.append(MASK)
        elif equals and is_secret and value.lower() not in _PLAIN:
            masked.append(f"{name}={MASK}")
        else:
            masked.append(redact_text(argument))
        hide_next = is_secret and not equals and argument.startswith("-")
    return masked


@overload
def redact_values(values: Mapping[str, object]) -> dict[str, object]: ...
@overload
def redact_values(values: object) -> object: ...
def redact_values(values: object) -> object:
    """Redact a configuration of mappings, sequences and scalars by key and by text; anything else is unchanged."""
    if isinstance(values, Mapping):
        return {key: _mask_entry(str(key), value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [redact_values(value) for value in values]
    return redact_text(values) if isinstance(values, str) else values


def _mask_entry(key: str, value: object) -> object:
    # Strings only: numbers are no credentials, and a mapping is redacted entry by entry.
    if isinstance(value, str) and _is_secret_name(key) and value.lower() not in _PLAIN:
        return MASK
    return redact_values(value)


def _is_secret_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def _known_secrets() -> Iterator[str]:
    """Credentials of this machine, from environment variables and ~/.netrc, where wandb stores its API key."""
    for name, value in os.environ.items():
        if _is_secret_name(name) and len(value) >= _SHORTEST:
            yield value
    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):  # usually there is no such file
        return
    yield from (password for _, _, password in hosts.values() if password and len(password) >= _SHORTEST)
