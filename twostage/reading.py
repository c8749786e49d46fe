"""Files of text and JSON that somebody else may have written, or a kill or a disk have damaged."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """What a text of JSON says.

    Raises:
        ValueError: it is none, or its lists lie too deep in each other.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("lists or tables too deep in each other") from error


def read_json(path: Path) -> Any:
    """What a file of JSON says.

    Raises:
        OSError: it is no file, or cannot be read.
        ValueError: it is no UTF-8 or no JSON, or its lists lie too deep in each other.
    """
    return parse_json(read_text(path))


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        OSError: it is no file, or cannot be read.
        UnicodeDecodeError: it is no UTF-8.
    """
    # Whoever opens a pipe waits until somebody writes to it.
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise OSError(errno.EINVAL, "it is a pipe or a device, and no file", str(path))
    return path.read_text(encoding="utf-8-sig")
