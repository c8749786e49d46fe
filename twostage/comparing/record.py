"""compare.json: what was asked and what it came to, so that the same command goes on and another one is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from twostage import __version__
from twostage.comparing.place import Place
from twostage.comparing.plan import Cell
from twostage.comparing.request import Request
from twostage.errors import UserError, printable
from twostage.reading import parse_json

FILE = "compare.json"
FORMAT = 1
# Letters of a value in a message.
_LONGEST = 200


class Record:
    """What compare.json of a place holds.

    Attributes:
        facts: format, version, request, command, threads, steps (of a budget), photos (their sha256), cells (their
            recipes), failed (why).
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self.facts: dict[str, Any] = {}

    def open(self, request: Request) -> None:
        """Read it, where there is one.

        Raises:
            UserError: it cannot be read, or is of another request.
        """
        text = self._place.read(FILE)
        if text is None:
            return
        try:
            facts = parse_json(text)
            stored = dict(facts["request"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._place.join(FILE)} is broken ({error}); choose another output") from error
        self.facts = facts
        changed = differing(stored, request.model_dump(mode="json"))
        if changed:
            raise UserError(
                f"{self._place.root} holds another comparison: {', '.join(changed)}; repeat it as it was asked "
                f"({self.facts.get('command') or 'see ' + self._place.join(FILE)}), or choose another output"
            )

    def begin(self, request: Request, cells: Sequence[Cell], **facts: Any) -> None:
        """Write down what is asked for and what it comes to.

        Raises:
            UserError: a recipe, or a photo, is not what it was when the comparison was begun; or it cannot be written.
        """
        recipes = {cell.name: cell.recipe.model_dump(mode="json") for cell in cells}
        if stored := self.facts.get("cells"):
            changed = differing(stored, recipes)
            if changed:
                more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
                raise UserError(
                    f"recipes have changed since {self._place.root} was begun: {', '.join(changed[:3])}{more}; restore "
                    "them, or choose another output"
                )
        before, now = self.facts.get("photos", {}), facts.get("photos", {})
        if changed := [name for name in now if before and before.get(name) != now[name]]:
            raise UserError(
                f"photos of {', '.join(changed)} have changed since {self._place.root} was begun, and its runs would "
                "not all be of the same ones; restore them, or choose another output"
            )
        asked = {"format": FORMAT, "versions": {"twostage": __version__}, "request": request.model_dump(mode="json")}
        self.update(**asked, **facts, cells=recipes)

    def update(self, **facts: Any) -> None:
        """Add facts."""
        self.facts.update(facts)
        self._place.write(FILE, json.dumps(self.facts, indent=2, ensure_ascii=False) + "\n")


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Leaves in which two tables differ, as "seeds ([0], now [0, 1])"."""
    before, after = _leaves(old), _leaves(new)
    names = list(dict.fromkeys([*before, *after]))
    return [
        f"{printable(name)} ({_show(before, name)}, now {_show(after, name)})"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _show(leaves: Mapping[str, Any], name: str) -> str:
    if name not in leaves:
        return "none"
    text = printable(json.dumps(leaves[name], ensure_ascii=False))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _leaves(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in table.items():
        leaves.update(_leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return leaves
