"""Guidance beyond the stock pipeline's: the denoiser is asked for other things, and answers as if it had not been."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Guides:
    """What a batch of pictures is guided by, beside its prompts.

    Attributes:
        named: of each picture whether its prompt names the subject; the others are guided as ever, (pictures,).
        kinds: what the denoiser is told of the prompts with the class alone in the token's place, under the names and
            in the dictionaries in which it is told, a row a picture; empty to leave the class out.
        share: of the guidance that goes towards the class, 0..1.
        untouched: the base's denoiser, which says in the tuned one's place what is drawn of nothing; None to leave it
            out.
    """

    named: Tensor
    kinds: Mapping[str, Any] = field(default_factory=dict)
    share: float = 0.0
    untouched: nn.Module | None = None


@contextmanager
def guided(denoiser: nn.Module, guides: Guides) -> Iterator[None]:
    """Within it, a stock pipeline that draws with the denoiser is guided by more than its prompts.

    Of classifier-free guidance e0 + w (e_subject - e0) with the weight w, the share s towards the class makes
    e0 + w (1 - s) (e_subject - e0) + w s (e_class - e0): the mixed sampling of arXiv 2502.05895, for three passes a
    picture and step in place of two. With the untouched denoiser, e0 is its own: the personalization guidance of arXiv
    2508.00319 with the weak model at the base.

    Args:
        denoiser: of the pipeline, which asks it for nothing and for the prompts in one batch.
        guides: for as many pictures as that batch has prompts.
    """
    named, count = guides.named, len(guides.named)

    def rows_of(told: Any, places: Tensor, more: Tensor, other: Any) -> Any:
        return _chosen(told, 2 * count, places, more, other, named)

    by_base = named if guides.untouched else torch.zeros_like(named)
    own = torch.cat([torch.arange(count)[~by_base], torch.arange(count, 2 * count)])
    class_rows = count + torch.arange(count)[named] if guides.kinds else torch.arange(0)
    asked_for = []

    def ask(net: nn.Module, asked: tuple[Any, ...], told: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        asked_for.append((asked, told))
        assert any(_is_batch(value, 2 * count) for value in (*asked, *told.values())), "guidance is off"
        both = tuple(rows_of(value, own, class_rows, None) for value in asked)
        return both, rows_of(told, own, class_rows, guides.kinds)

    def answer(net: nn.Module, _: tuple[Any, ...], __: dict[str, Any], found: tuple[Tensor]) -> tuple[Tensor]:
        asked, told = asked_for.pop()
        nothing, subject, kinds = found[0].tensor_split([len(own) - count, len(own)])
        without = torch.empty_like(subject)
        without[~by_base] = nothing
        if guides.untouched:
            weak = torch.arange(count)[named], torch.arange(0), None
            again = tuple(rows_of(value, *weak) for value in asked)
            without[named] = guides.untouched(*again, **rows_of(told, *weak))[0].to(subject)
        if guides.kinds:
            subject[named] = subject[named].lerp(kinds, guides.share)
        return (torch.cat([without, subject]),)

    hooks = [
        denoiser.register_forward_pre_hook(ask, with_kwargs=True),
        denoiser.register_forward_hook(answer, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _chosen(told: Any, count: int, places: Tensor, more: Tensor, other: Any, named: Tensor) -> Any:
    """Some rows of what a denoiser is told, in however deep dictionaries; what has not so many is the same for all.

    Args:
        told: a value of it.
        count: rows of what has one for each.
        places: rows that are wanted.
        more: rows that are wanted after these; or, where there is one, `other`'s of the pictures that are `named`.
    """
    if isinstance(told, Mapping):
        others = other or {}
        return {name: _chosen(value, count, places, more, others.get(name), named) for name, value in told.items()}
    if not _is_batch(told, count):
        return told
    after = told[more.to(told.device)] if other is None else other.to(told)[named.to(told.device)]
    return torch.cat([told[places.to(told.device)], after])


def _is_batch(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == count
