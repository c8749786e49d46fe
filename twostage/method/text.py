"""States of prompts from a text encoder that is asked in each step."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor


def encode_each_once(
    family: ModuleType, tokenizer: Any, text_encoder: Any, prompts: list[str], expand: Callable[[str], str]
) -> Tensor:
    """States of prompts, (len(prompts), tokens, D), of which equal ones are encoded once.

    Args:
        family, tokenizer, text_encoder: of the base.
        prompts: with the tokens' names in them.
        expand: writes out what stands for several vectors.
    """
    different = list(dict.fromkeys(prompts))
    states: Tensor = family.encode_text(tokenizer, text_encoder, [expand(prompt) for prompt in different])
    return states[[different.index(prompt) for prompt in prompts]]
