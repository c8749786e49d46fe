"""Files of JSON that somebody else may have written, or a kill or a disk have damaged."""

from __future__ import annotations

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
        OSError: it cannot be read.
        ValueError: it is no file, no UTF-8 or no JSON, or its lists lie too deep in each other.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # Of a pipe, the end might never come.
        raise ValueError(f"{path.name} is no file")
    return parse_json(path.read_text(encoding="utf-8"))
