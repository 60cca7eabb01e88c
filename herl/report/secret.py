"""Hides settings that hold a password, key or token from tables, pages, trackers and names of folders.

A setting is hidden whole if a part of its key says so, at any depth, or a key, flag or address inside its
value, or the look of the value. The name of an environment variable (`api_key_env`) is no secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # omegaconf brings it

HIDDEN = "(hidden)"
SHORTEST = 8
"""Characters of a variable's value from which on it is looked for in texts."""
_WORDS = {
    "apikey", "auth", "authentication", "authorization", "bearer", "cookie", "cookies", "credential",
    "credentials", "headers", "passphrase", "passwd", "password", "passwords", "pw", "pwd", "secret",
    "secrets",
}  # fmt: skip
"""Words that make a name secret, wherever they stand in it."""
_KEY = re.compile(
    r"(?:^|_)(?:api|access|account|client|encryption|license|master|private|service|signing|ssh|write)_?keys?$"
    r"|^key$"
)
_TOKEN = re.compile(r"(?:^|_)(?<!pad_)(?<!eos_)(?<!bos_)(?<!unk_)(?<!sep_)(?<!end_)(?<!per_)(?<!stop_)token$")
"""A token, but not one that a tokenizer has: pad_token."""
_VALUE = re.compile(
    r"\b(?:sk-|hf_|gh[a-z]_|github_pat_|xox[a-z]-|glpat-)[A-Za-z0-9_-]{8,}|\bAIza[A-Za-z0-9_-]{8,}"
    r"|\bA[KS]IA[A-Z0-9]{8,}|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+"  # Google, Amazon, JSON Web Tokens
    r"|://[^/\s@]+@|(?i:\b(?:bearer|basic)\s+[A-Za-z0-9+/=._-]{8,})"
)
_NAMED = re.compile(r"([A-Za-z_][\w-]*)['\"]?\s*[:=]")
"""A name before a value, as in {api_key: x}, --api-key=x and ?key=x."""
_FLAG = re.compile(r"(?<![\w-])-{1,2}([A-Za-z][\w-]*)")


def without_secret(key: str, value: str) -> str:
    """Returns a setting's value, or "(hidden)" if it is or holds a password, key or token.

    >>> without_secret("judge.chat.arguments", "[--api-key,abc]")
    '(hidden)'
    >>> without_secret("rollout.attempt.max_new_tokens", "64")
    '64'
    """
    parts = re.split(r"[./@:]", key)
    inside = (*_NAMED.findall(value), *_FLAG.findall(value))
    found = any(map(_is_secret, (*parts, *inside))) or _VALUE.search(value)
    return HIDDEN if found else value


def redacted(text: str) -> str:
    """Returns a text without what looks like a key, and without the values of environment variables whose
    names say that they hold one.

    >>> redacted("got sk-abcdefgh1234 for http://me:pass@node7/v1")
    'got (hidden) for http(hidden)node7/v1'
    """
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and _is_secret(name):
            text = text.replace(value, f"${name}")
    return _VALUE.sub(HIDDEN, text)


def plain_value(value: str) -> Any:
    """Returns what a setting's text means as YAML: a number, None, text, a list or a mapping.

    >>> plain_value("1e-6") == plain_value("0.000001"), plain_value("a: b: c")
    (True, 'a: b: c')
    """
    try:
        parsed = OmegaConf.to_container(OmegaConf.create(f"value: {value}"), resolve=False)
    except (ValueError, YAMLError, OmegaConfBaseException):
        return value
    return parsed.get("value") if isinstance(parsed, Mapping) and len(parsed) == 1 else value


def _is_secret(name: str) -> bool:
    """Whether a part of a key, as api_key, X-Auth or accessToken, says that its value is secret."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()
    words = name.split("_")
    if words[-1] == "env":
        return False
    return bool(_WORDS.intersection(words) or _KEY.search(name) or _TOKEN.search(name))
