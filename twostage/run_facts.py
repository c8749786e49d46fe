"""run.json as it is read: of a format that is known, and with everything of the kind it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from twostage.errors import UserError
from twostage.reading import read_json

# Of a run folder as a whole. Raise it when a run folder of now could not be read by the version before, or means
# something else there; `read_facts` then reads the old one too, or says how to go on with it.
FORMAT = 1


class _Base(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str
    sha256: str


class _Facts(BaseModel):
    """Kinds alone: what is missing was never said, and what is not listed is for people."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    format: int = Field(FORMAT, ge=1)
    finished: bool = False
    seconds: dict[str, float] = {}
    peak_memory_bytes: int = 0
    checks: dict[str, Any] = {}
    versions: dict[str, str] = {}
    device: str = ""
    base: _Base | None = None
    processes: int = 1
    photos: list[dict[str, Any]] = []
    held_out: list[dict[str, Any]] = []
    class_images: list[dict[str, Any]] = []
    plan: dict[str, Any] = {}
    measured: dict[str, dict[str, int]] = {}
    selection: dict[str, Any] = {}
    base_card: dict[str, Any] = {}


def read_facts(file: Path) -> dict[str, Any]:
    """The facts of a run.

    Args:
        file: run.json, which is there.

    Raises:
        UserError: it cannot be read, or is of a newer version, or holds what no run writes.
    """
    try:
        facts = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}; restore it, or train anew into another folder") from error
    if not isinstance(facts, dict):
        raise UserError(f"{file} holds no facts of a run; train into another folder")
    found = facts.get("format", FORMAT)
    if isinstance(found, int) and found > FORMAT:
        raise UserError(
            f"{file} was written by a newer twostage (format {found}, and this one reads up to {FORMAT}); update "
            "twostage, and go on with that"
        )
    try:
        _Facts.model_validate(facts, strict=True)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        raise UserError(
            f"{file} is damaged: {where}: {wrong['msg']}; restore it, or train anew into another folder"
        ) from error
    return facts
