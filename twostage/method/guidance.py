"""Guidance beyond the stock pipeline's: the U-Net is asked for other things, and answers as if it had not been."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Guides:
    """What a batch of pictures is guided by, beside its prompts.

    Attributes:
        named: of each picture whether its prompt names the subject; the others are guided as ever, (pictures,).
        kinds: states of the prompts with the class alone in the token's place, (pictures, tokens, D); None to leave
            the class out.
        share: of the guidance that goes towards the class, 0..1.
        untouched: the base's U-Net, which says in the tuned one's place what is drawn of nothing; None to leave it out.
    """

    named: Tensor
    kinds: Tensor | None = None
    share: float = 0.0
    untouched: nn.Module | None = None


@contextmanager
def guided(unet: nn.Module, guides: Guides) -> Iterator[None]:
    """Within it, a stock pipeline that draws with the U-Net is guided by more than its prompts.

    Of classifier-free guidance e0 + w (e_subject - e0) with the weight w, the share s towards the class makes
    e0 + w (1 - s) (e_subject - e0) + w s (e_class - e0): the mixed sampling of arXiv 2502.05895, for three passes a
    picture and step in place of two. With the untouched U-Net, e0 is its own: the personalization guidance of arXiv
    2508.00319 with the weak model at the base.

    Args:
        unet: of the pipeline, which asks it for nothing and for the prompts in one batch.
        guides: for as many pictures as that batch has prompts.
    """
    named, count = guides.named, len(guides.named)
    by_base = named if guides.untouched else torch.zeros_like(named)
    asked_for = []

    def ask(net: nn.Module, asked: tuple[Any, ...], told: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        latents, *rest = asked
        states = told["encoder_hidden_states"]
        assert len(latents) == 2 * count, "guidance is off"
        asked_for.append((asked, told))
        rows = [latents[:count][~by_base], latents[count:]]
        said = [states[:count][~by_base], states[count:]]
        if guides.kinds is not None:
            rows.append(latents[count:][named])
            said.append(guides.kinds.to(states)[named])
        return (torch.cat(rows), *rest), {**told, "encoder_hidden_states": torch.cat(said)}

    def answer(net: nn.Module, _: tuple[Any, ...], __: dict[str, Any], found: tuple[Tensor]) -> tuple[Tensor]:
        (latents, *rest), told = asked_for.pop()
        own = count - int(by_base.sum())
        nothing, subject, kinds = found[0].tensor_split([own, own + count])
        without = torch.empty_like(subject)
        without[~by_base] = nothing
        if guides.untouched:
            states = told["encoder_hidden_states"][:count][named]
            told = {**told, "encoder_hidden_states": states}
            without[named] = guides.untouched(latents[:count][named], *rest, **told)[0].to(subject)
        if guides.kinds is not None:
            subject[named] = subject[named].lerp(kinds, guides.share)
        return (torch.cat([without, subject]),)

    hooks = [
        unet.register_forward_pre_hook(ask, with_kwargs=True),
        unet.register_forward_hook(answer, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
