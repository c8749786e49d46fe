"""Guidance beyond that of the stock pipeline: the U-Net is asked for more, and answers in the shape it was asked in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def towards_class(unet: nn.Module, states: Tensor, share: float) -> Iterator[None]:
    """Within it, a stock pipeline that draws with the U-Net is guided towards subject and class together.

    With the share s, classifier-free guidance of weight w becomes e0 + w (1 - s) (e_subject - e0) + w s (e_class - e0):
    the mixed sampling of arXiv 2502.05895. It takes three passes a step for a picture in place of two.

    Args:
        unet: of the pipeline, which asks it for nothing and for the prompts in one batch.
        states: of the prompts with the class alone in the token's place, (pictures, tokens, D).
        share: of the guidance that goes towards the class, 0..1.
    """
    count = len(states)

    def extend(net: nn.Module, asked: tuple[Any, ...], told: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        latents, *rest = asked
        with_token = told["encoder_hidden_states"]
        assert len(latents) == 2 * count, "guidance is off"
        told["encoder_hidden_states"] = torch.cat([with_token, states.to(with_token)])
        return (torch.cat([latents, latents[count:]]), *rest), told

    def mix(net: nn.Module, asked: tuple[Any, ...], told: dict[str, Any], answer: tuple[Tensor]) -> tuple[Tensor]:
        nothing, subject, kind = answer[0].split(count)
        return (torch.cat([nothing, subject.lerp(kind, share)]),)

    hooks = [
        unet.register_forward_pre_hook(extend, with_kwargs=True),
        unet.register_forward_hook(mix, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
