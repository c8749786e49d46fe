"""What a device cannot do is refused before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from twostage.errors import UserError
from twostage.machine import compute_capability, has_fast_bfloat16, room_for_tensors
from twostage.memory.ladder import climb
from twostage.processes import check_bfloat16
from twostage.recipe import Memory, Recipe, Stage2

TURING, AMPERE = (7, 5), (8, 0)
WHOLE = Recipe(stage2=Stage2(steps=1, learning_rate=1e-3))


@pytest.mark.parametrize(
    ("capability", "fast"), [((7, 0), False), (TURING, False), (AMPERE, True), ((8, 6), True), ((12, 0), True)]
)
def test_cards_before_ampere_are_slow_at_bfloat16(capability: tuple[int, int], fast: bool) -> None:
    assert has_fast_bfloat16(capability) is fast


def test_what_is_no_nvidia_card_is_taken_to_be_fast_at_it() -> None:
    assert has_fast_bfloat16(compute_capability(torch.device("cpu")))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"mixed_precision": "bf16"}, ["mixed_precision = 'bf16'"]),
        ({"memory": Memory(weights="bfloat16")}, ["memory.weights = 'bfloat16'"]),
        (
            {"mixed_precision": "bf16", "memory": Memory(weights="bfloat16")},
            ["mixed_precision = 'bf16'", "memory.weights = 'bfloat16'"],
        ),
    ],
)
def test_a_turing_card_refuses_bfloat16_in_one_line_that_names_what_to_use(
    options: dict[str, Any], named: list[str]
) -> None:
    recipe = WHOLE.model_copy(update=options)
    with pytest.raises(UserError) as caught:
        check_bfloat16(recipe, "NVIDIA T4", TURING)
    said = str(caught.value)
    assert all(option in said for option in [*named, "NVIDIA T4", "mixed_precision = 'fp16'", "adamw8bit"])
    assert len(said.splitlines()) == 1
    check_bfloat16(recipe, "NVIDIA A100", AMPERE)
    check_bfloat16(recipe, "cpu", None)


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_it_takes_whatever_has_no_bfloat16_in_it(precision: Any) -> None:
    check_bfloat16(WHOLE.model_copy(update={"mixed_precision": precision}), "NVIDIA T4", TURING)


def test_its_ladder_has_float16_in_the_place_of_bfloat16_and_nothing_that_cannot_skip_a_step() -> None:
    standings = list(climb(WHOLE, fast_bfloat16=False))
    for standing in standings:
        check_bfloat16(standing.recipe, "NVIDIA T4", TURING)
    changes = {name: value for standing in standings for name, value in standing.changes.items()}
    assert changes["mixed_precision"] == "fp16"
    assert changes["memory.optimizer"] == "adafactor"
    assert "memory.step_in_backward" not in changes
    names = [standing.rung.name for standing in climb(WHOLE)]
    place = names.index("bfloat16")
    assert [standing.rung.name for standing in standings][place] == "float16 autocast"


def test_the_room_of_a_process_is_no_more_than_its_limit() -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    there = room_for_tensors(torch.device("cpu"))
    resource.setrlimit(resource.RLIMIT_DATA, (there // 2, hard))
    try:
        assert room_for_tensors(torch.device("cpu")) == there // 2
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
