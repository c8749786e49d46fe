"""States of prompts from a text encoder that is asked in each step."""

from __future__ import annotations

from collections.abc import Callable

from twostage.family import Family
from twostage.family_parts import Text
from twostage.prompt_states import PromptStates


def encode_each_once(family: Family, text: Text, prompts: list[str], expand: Callable[[str], str]) -> PromptStates:
    """States of prompts, of which equal ones are encoded once.

    Args:
        family, text: of the base.
        prompts: with the tokens' names in them.
        expand: writes out what stands for several vectors.
    """
    different = list(dict.fromkeys(prompts))
    states = family.encode_text(text, [expand(prompt) for prompt in different])
    return states.rows([different.index(prompt) for prompt in prompts])
