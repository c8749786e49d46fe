"""What a report must not tell: secrets, and whose machine it is of."""

from __future__ import annotations

import getpass
import os
import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from twostage.errors import shown

# Keys as the hub, GitHub, Weights & Biases and such give them, wherever a message has them from.
_KEY = re.compile(r"\b(?:hf_|sk-|gh[pousr]_|AKIA)[A-Za-z0-9_-]{14,}|\b[0-9a-f]{40}\b")


def without_private(value: Any) -> Any:
    """The same, with every string in it cleared: of the values of environment variables whose names sound secret, of
    what looks like a key, of the home folder, and of the user's name in paths.

    Args:
        value: of dataclasses, dictionaries, lists, strings, paths, and what else needs no clearing.
    """
    if isinstance(value, str):
        return _clear(value)
    if isinstance(value, Path):
        return Path(_clear(str(value)))
    if isinstance(value, dict):
        return {key: without_private(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_private(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: without_private(getattr(value, field.name)) for field in fields(value)})
    return value


def _clear(text: str) -> str:
    text = _KEY.sub("***", shown(text))
    home, user = os.path.expanduser("~"), _user()
    if len(home) > 1:
        text = re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", "~", text)
    return re.sub(rf"(?<=[/\\_-]){re.escape(user)}(?![A-Za-z0-9])", "USER", text) if user else text


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # A number without a name, as in containers.
        return ""
