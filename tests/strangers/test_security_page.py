"""SECURITY.md promises nothing that no test holds."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
# Of the page, what promises nothing.
HONEST = ("What is trusted", "What is not promised", "Telling us of a hole")
LINK = re.compile(r"\[([\w/.-]+\.py)::(\w+)\]\(([\w/.-]+)\)")


def promises() -> list[str]:
    """Every item of the sections that promise."""
    items = []
    for section in PAGE.split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        if title not in HONEST:
            items += re.split(r"^- ", body, flags=re.MULTILINE)[1:]
    return items


def names_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_there_are_promises() -> None:
    assert len(promises()) > 20
    for title in HONEST:
        assert f"\n## {title}\n" in PAGE


@pytest.mark.parametrize("item", promises(), ids=lambda item: " ".join(item.split())[:50])
def test_a_promise_points_at_its_tests_and_they_are_there(item: str) -> None:
    text = item.split("\n\n")[0]
    found = LINK.findall(text)
    assert found, item
    for shown, name, target in found:
        assert shown == target and name.startswith("test_")
        assert name in names_of(target), f"{target} has no {name}"
    # One sentence, or several of which each points at one.
    sentences = re.split(r"(?<=\))\.\s+", " ".join(text.split()).rstrip("."))
    assert all(LINK.search(sentence) for sentence in sentences), sentences


def test_promising_sections_say_nothing_outside_of_their_items() -> None:
    """But for a line that opens the section and ends in a colon."""
    for section in PAGE.split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        if title not in HONEST:
            opening = re.split(r"^- ", body, flags=re.MULTILINE)[0].strip()
            assert not opening or opening.endswith(":"), opening
