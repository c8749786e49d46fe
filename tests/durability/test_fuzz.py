"""Damaged inputs of every kind are read, or refused in one line: 120 of those that `benchmarks.fuzz` makes."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import pytest
import torch

if not sys.platform.startswith("linux"):
    pytest.skip(
        "inputs are read in forked processes, and their memory is counted as Linux does", allow_module_level=True
    )

from benchmarks.fuzz.inputs import Fuzz, Tried
from benchmarks.fuzz.kinds import KINDS

INPUTS = 120
# Kind and number of inputs, of seed 0, that once failed beyond those. What is damaged depends on the material, so each
# has a test of its own beside the module that it was mended in, too.
SEEDS = (
    ("photos, examined", 18),  # 3000 pixels by 2: no frame of a pixel.
    ("base, learned", 41),  # The VAE lacks a tensor, and diffusers went on without.
    ("base, learned", 64),
    ("base, drawn with", 44),  # A tokenizer that is a link to nothing.
    ("base, drawn with", 109),
    ("interrupted run", 48),  # Of a checkpoint, the average is missing.
    ("interrupted run", 72),  # The embedding is of another token.
    ("finished run", 116),
    ("suite or recipe", 13),  # Told in 100,000 letters.
    ("suite or recipe", 93),
    ("comparison", 52),  # A name of two lines.
)


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Fuzz:
    torch.set_num_threads(1)
    return Fuzz(tmp_path_factory.mktemp("fuzz"))


def _told(wrong: Iterable[Tried]) -> str:
    return "\n".join(f"{one.kind} {one.number}, {one.damaged}: {one.outcome.told}" for one in wrong)


def test_every_kind_is_read_where_nothing_is_damaged(fuzz: Fuzz) -> None:
    """Else its inputs would all be refused for another reason."""
    assert _told(tried for tried in fuzz.intact() if tried.outcome.kind != "read") == ""


def test_damaged_inputs_are_read_or_refused_in_one_line(fuzz: Fuzz) -> None:
    planned = fuzz.plan(INPUTS)
    assert len(planned) > 0.9 * INPUTS
    found = [fuzz.try_one(kind, number) for kind, number in planned]
    assert _told(tried for tried in found if tried.outcome.kind == "failed") == ""
    assert {tried.kind for tried in found if tried.outcome.kind == "refused"} >= {
        "photos, read",
        "base, learned",
        "delta",
    }


@pytest.mark.parametrize(("name", "number"), SEEDS)
def test_what_once_failed_does_not_again(fuzz: Fuzz, name: str, number: int) -> None:
    (kind,) = [kind for kind in KINDS if kind.name == name]
    tried = fuzz.try_one(kind, number)
    assert tried.outcome.kind != "failed", tried
