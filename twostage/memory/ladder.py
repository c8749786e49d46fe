"""The memory ladder: what makes a run smaller, cheapest first, and what each rung costs beside time.

A rung is climbed on top of those before it. One that changes nothing, since the recipe is there already, or that does
not go with the rest of a recipe, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import ValidationError

from twostage.recipe import Recipe

Change = Callable[[Recipe], Mapping[str, Any]]


@dataclass(frozen=True)
class Rung:
    """One thing that makes a run smaller.

    Attributes:
        name: of it, in a few words.
        price: what it costs beside time, in words; "" for nothing.
        change: recipe -> dotted options and their values, of what the recipe has.
    """

    name: str
    price: str
    change: Change


@dataclass(frozen=True)
class Standing:
    """A recipe on a rung.

    Attributes:
        rung: it has climbed to.
        recipe: with all changes up to there.
        changes: of this rung, those that made a difference.
    """

    rung: Rung
    recipe: Recipe
    changes: Mapping[str, Any]


def _stages(recipe: Recipe, **options: Any) -> dict[str, Any]:
    names = [name for name in ("stage1", "stage2") if getattr(recipe, name)]
    return {f"{stage}.{name}": value for stage in names for name, value in options.items()}


def _in_half(recipe: Recipe) -> dict[str, Any]:
    whole = recipe.stage2 is not None and recipe.stage2.train == "unet"
    return {"mixed_precision": "bf16"} | ({"memory.weights": "bfloat16"} if whole else {})


def _in_float16(recipe: Recipe) -> dict[str, Any]:
    return {"mixed_precision": "fp16"} if recipe.mixed_precision == "no" else {}


def _in_backward(recipe: Recipe) -> dict[str, Any]:
    if recipe.stage2 is None:
        return {}
    size = recipe.stage2.batch_size * recipe.stage2.gradient_accumulation_steps
    return {
        "memory.step_in_backward": True,
        "stage2.max_grad_norm": 0.0,
        "stage2.batch_size": size,
        "stage2.gradient_accumulation_steps": 1,
    }


def _streamed(share: float, recipe: Recipe) -> dict[str, Any]:
    whole = recipe.stage2 is not None and recipe.stage2.train == "unet"
    within = _in_backward(recipe) if whole and not recipe.memory.step_in_backward else {}
    return within | {"memory.streamed": max(share, recipe.memory.streamed), "speed.compile": "no"}


def _one_at_a_time(recipe: Recipe) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for name in ("stage1", "stage2"):
        if stage := getattr(recipe, name):
            together = stage.batch_size * stage.gradient_accumulation_steps
            changes |= {f"{name}.batch_size": 1, f"{name}.gradient_accumulation_steps": together}
    return changes


def _frozen(kept: str, beside_whole: bool, recipe: Recipe) -> dict[str, Any]:
    """Where the U-Net is frozen: in all that a recipe does, or in its stage 1 beside a stage 2 that trains it whole."""
    whole = recipe.stage2 is not None and recipe.stage2.train == "unet"
    if whole != beside_whole or recipe.memory.frozen_base == "4bit":
        return {}
    return {"memory.frozen_base": kept}


def _optimizer(kind: str, recipe: Recipe) -> dict[str, Any]:
    """Unless the recipe's own has no more state."""
    states = ("adamw", "adamw8bit", "adamw4bit", "adafactor")
    return {"memory.optimizer": kind} if states.index(kind) > states.index(recipe.memory.optimizer) else {}


def _drawn_alone(recipe: Recipe) -> dict[str, Any]:
    class_images = {"prior.sample_batch_size": 1} if recipe.prior.wanted else {}
    return {"sample.per_prompt": min(1, recipe.sample.per_prompt), **class_images}


_BFLOAT16 = Rung("bfloat16", "updates rounded stochastically; a card that is fast at bfloat16", _in_half)
# In its place on a card that is not.
_FLOAT16 = Rung("float16 autocast", "the loss is scaled, and steps that overflow are skipped", _in_float16)
AS_IT_IS = Rung("the recipe as it is", "", lambda recipe: {})
LADDER: tuple[Rung, ...] = (
    Rung(
        "fewer pictures drawn together",
        "one sample picture a prompt; class images take longer",
        _drawn_alone,
    ),
    Rung(
        "VAE in tiles",
        "above 512 pixels, about as much as a VAE itself loses",
        lambda recipe: {"memory.vae_tiling": True},
    ),
    Rung(
        "gradient checkpointing", "none: the same result", lambda recipe: _stages(recipe, gradient_checkpointing=True)
    ),
    _BFLOAT16,
    Rung("frozen base in 8 bits", "gradients are some 3% off", partial(_frozen, "8bit", False)),
    Rung("frozen base in 4 bits", "gradients are some 18% off", partial(_frozen, "4bit", False)),
    Rung("8-bit AdamW", "coarser moments", partial(_optimizer, "adamw8bit")),
    Rung("one photo at a time, gradients added up", "rounding", _one_at_a_time),
    Rung("step in the backward pass", "no clipping of the gradient's norm", _in_backward),
    # AdamW in 4 bits is none: Adafactor takes less and, where it was measured, loses less (docs/memory.md).
    Rung("Adafactor", "another optimizer: no momentum", partial(_optimizer, "adafactor")),
    Rung("frozen base of stage 1 in 8 bits", "its gradients are some 3% off", partial(_frozen, "8bit", True)),
    Rung(
        "activations on the host",
        "none: the same result; host memory",
        lambda recipe: {"memory.activations": "host"},
    ),
    Rung("half of the U-Net's blocks streamed", "none: the same result; host memory", partial(_streamed, 0.5)),
    Rung("all of the U-Net's blocks streamed", "none: the same result; host memory", partial(_streamed, 1.0)),
    Rung(
        "batches of one photo",
        "noisier steps: each sees less",
        lambda recipe: _stages(recipe, batch_size=1),
    ),
)


def climb(recipe: Recipe, fast_bfloat16: bool = True) -> Iterator[Standing]:
    """The recipe on each rung, from the ground up.

    Args:
        recipe: on the ground.
        fast_bfloat16: whether the card is fast at it; where not, it gets float16 in its place.
    """
    yield Standing(AS_IT_IS, recipe, {})
    for rung in LADDER:
        if rung is _BFLOAT16 and not fast_bfloat16:
            rung = _FLOAT16
        before = recipe.model_dump()
        changes = {name: value for name, value in rung.change(recipe).items() if _value(before, name) != value}
        changed = changed_recipe(recipe, changes) if changes else None
        if changed is not None:
            recipe = changed
            yield Standing(rung, recipe, changes)


def changes_up_to(standings: Iterable[Standing], last: Standing) -> dict[str, Any]:
    """All that the rungs of a ladder change from the ground up to one of them: dotted options and their values."""
    changes: dict[str, Any] = {}
    for standing in standings:
        changes |= standing.changes
        if standing is last:
            break
    return changes


def changed_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe | None:
    """A recipe with other options, given by their dotted names; None where they do not go with the rest of it."""
    options = recipe.model_dump()
    for name, value in changes.items():
        table, _, option = name.rpartition(".")
        (options.setdefault(table, {}) if table else options)[option] = value
    try:
        return Recipe.model_validate(options)
    except ValidationError:
        return None


def _value(options: Mapping[str, Any], name: str) -> Any:
    table, _, option = name.rpartition(".")
    return (options.get(table, {}) if table else options).get(option)
