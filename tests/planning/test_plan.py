"""What a plan adds to a rehearsal: room, ladder, choice."""

import pytest

from twostage.errors import UserError
from twostage.planning import GIB, check_fits, fits, plan, read_size
from twostage.planning.cards import known_cards
from twostage.planning.rehearsal import Phase, Work
from twostage.run import train


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8), ("8 GiB", 8), ("8g", 8), ("8192MB", 8), ("0.5gb", 0.5), ("1T", 1024)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert read_size(text) == size * GIB


@pytest.mark.parametrize("text", ["lots", "8", "", "-8GB", "0GB", "8GBB", "GB"])
def test_what_is_no_size_is_refused_with_one_that_is(text):
    with pytest.raises(UserError, match="write it as 8GB"):
        read_size(text)


def test_a_card_needs_more_than_what_is_reserved():
    phase = Phase("stage 2", 5 * GIB, 6 * GIB, Work(), 1, "step")
    assert [fits(phase, size * GIB) for size in (6, 7, 8)] == ["no", "perhaps", "yes"]


def test_the_first_rung_that_fits_is_chosen_and_those_above_are_not_needed(tiny_recipe):
    planned = plan(tiny_recipe, 80 * GIB)
    assert planned.chosen is planned.ladder[0]
    assert all(rung.rehearsed is None for rung in planned.ladder[1:])


def test_where_nothing_fits_the_smallest_card_is_named(tiny_recipe):
    planned = plan(tiny_recipe.model_copy(update={"stage2": None}), GIB)
    assert planned.chosen is None
    assert all(rung.rehearsed for rung in planned.ladder)
    with pytest.raises(UserError, match=r"--vram 1GB: .*smallest card that would do has 2GB"):
        check_fits(planned, "1GB")


def test_a_run_folder_takes_no_more_than_planned(tiny_recipe, tmp_path):
    from twostage.display import Display

    run = train(tiny_recipe, tmp_path / "run", display=Display())
    tensors = 0
    for path in run.rglob("*.safetensors"):
        content = path.read_bytes()
        # The header with the names is nothing beside a real net, and much beside a tiny one.
        tensors += len(content) - 8 - int.from_bytes(content[:8], "little")
    assert 0 < tensors <= plan(tiny_recipe).room.disk


def test_half_precision_is_faster_on_every_card_and_estimates_are_ordered():
    for card in known_cards():
        full, half = card.seconds(Work(10**12)), card.seconds(Work(10**12, 10**12))
        assert full[0] < full[1]
        assert half[0] < full[0]
        assert card.source
