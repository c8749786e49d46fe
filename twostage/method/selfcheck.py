"""Did it learn? What tells a stage that taught its weights something from one that only took time.

token        every training prompt shows the token to the text encoder, whole
gradients    in the first steps, a gradient reaches each module that trains
finite       nothing that trains has become infinite or NaN
moved        what trains is no longer what it was
frozen       what is frozen is what it was, bit for bit
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NoReturn

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.errors import UserError

# Steps within which a gradient must have reached all that trains; by far most reach it in the first one. A batch whose
# captions were all dropped, or a loss that overflowed half precision, can leave a step without.
PATIENCE = 20
# 8-byte words summed at once: they stay in a processor's cache, and a GPU is not kept waiting.
_CHUNK = 1 << 17


class SelfCheck:
    """Of one stage. Make it before the first step; it then costs one look at gradients and a checksum at either end.

    Each session of a run looks for itself, since another machine may fail where the one before did not; what it says
    is of the stage, as if it had never been interrupted.

    Args:
        stage: 1 or 2.
        trained: parameters by name.
        nets: what the stage asks, by the name of the component; all in them that does not train is frozen.
        patience: steps within which a gradient must have come; see PATIENCE.

    Attributes:
        outcome: what each check found, in words; one that failed begins with "failed".
    """

    def __init__(
        self, stage: int, trained: Mapping[str, nn.Parameter], nets: Mapping[str, nn.Module], patience: int = PATIENCE
    ) -> None:
        self.outcome: dict[str, str] = {}
        self._stage, self._trained, self._nets, self._patience = stage, trained, nets, patience
        self._unreached = _modules(trained, nets)
        self._all = len(self._unreached)
        self._looked = 0
        # Of the stage, in this session and those before it: looks until all was reached, and what was not yet.
        self._waited, self._awaited = 0, set(self._unreached)
        self._start = {name: checksum(parameter) for name, parameter in trained.items()}
        self._frozen = {name: checksum(tensor) for name, tensor in self._still()}

    def look_at_gradients(self, norms: Mapping[str, Tensor] | None = None) -> None:
        """Call it in each step, with the gradients in place.

        Args:
            norms: of gradients that are gone already, by the parameter's name.

        Raises:
            UserError: some modules have got none for so long that they never will.
        """
        if not self._unreached:
            return
        self._looked += 1
        self._waited += bool(self._awaited)
        names = list(chain.from_iterable(self._unreached.values()))
        if norms is None:
            norms = {name: p.grad.norm() for name in names if (p := self._trained[name]).grad is not None}
        reached = dict(zip(names, _above_zero([norms.get(name) for name in names]), strict=True))
        self._unreached = {
            module: own for module, own in self._unreached.items() if not any(reached[name] for name in own)
        }
        self._awaited &= self._unreached.keys()
        if not self._unreached:
            self.outcome["gradients"] = f"reached all of {_count(self._all, 'module')} by step {self._waited}"
        elif self._looked >= self._patience:
            self._fail_gradients()

    def progress(self) -> dict[str, Any]:
        """What a later session goes on from, as JSON keeps it."""
        return {"waited": self._waited, "awaited": sorted(self._awaited)}

    def restore(self, progress: Mapping[str, Any] | None) -> None:
        """Go on from where another session's check stood; checkpoints did not say so at first."""
        if progress:
            self._waited, self._awaited = progress["waited"], set(progress["awaited"])

    def look_at_result(self) -> None:
        """Call it once after the last step.

        Raises:
            UserError: the stage has learned nothing, or something else; the reason.
        """
        if self._looked and self._unreached:
            self._fail_gradients()
        self._check_finite()
        self._check_moved()
        self._check_frozen()

    def _check_finite(self) -> None:
        broken = [name for name, parameter in self._trained.items() if not bool(parameter.isfinite().all())]
        if broken:
            self._fail(
                "finite",
                f"{_some(broken)} of {_count(len(self._trained), 'tensor')} hold infinity or NaN",
                f"lower stage{self._stage}.learning_rate",
            )
        self.outcome["finite"] = _count(len(self._trained), "tensor")

    def _check_moved(self) -> None:
        moved = [name for name, parameter in self._trained.items() if checksum(parameter) != self._start[name]]
        for component in dict.fromkeys(name.split(".")[0] for name in self._trained):
            own = [name for name in self._trained if name.split(".")[0] == component]
            still = [name for name in own if name not in set(moved)]
            # Not all: at the smallest of rates, what starts at zero moves still.
            if len(still) > len(own) / 2:
                self._fail(
                    "moved",
                    f"{_some(still)} of {_count(len(own), 'tensor')} in {component} are, bit for bit, what they were "
                    "before training",
                    f"raise stage{self._stage}.learning_rate or the steps, or train in another mixed_precision",
                )
        self.outcome["moved"] = f"{len(moved)} of {_count(len(self._trained), 'tensor')}"

    def _check_frozen(self) -> None:
        after = {name: checksum(tensor) for name, tensor in self._still()}
        changed = [name for name in self._frozen if after.get(name) != self._frozen[name]]
        if changed:
            self._fail(
                "frozen",
                f"{_some(changed)} of {_count(len(self._frozen), 'tensor')} changed, and should not have",
                "something else writes to them; leave it out",
            )
        self.outcome["frozen"] = f"{_count(len(self._frozen), 'tensor')}, bit for bit as before"

    def _still(self) -> Iterator[tuple[str, Tensor]]:
        """Looked up anew each time, so that a tensor put in the place of another is seen too."""
        for component, net in self._nets.items():
            for name, tensor in chain(net.named_parameters(), net.named_buffers()):
                if not tensor.requires_grad:
                    yield f"{component}.{name}", tensor

    def _fail_gradients(self) -> NoReturn:
        self._fail(
            "gradients",
            f"none reached {_some(list(self._unreached))} of {_count(self._all, 'module')} in "
            f"{_count(self._looked, 'step')}, so they learn nothing",
            "try without gradient_checkpointing or mixed_precision, and with torch's own attention",
        )

    def _fail(self, check: str, reason: str, remedy: str) -> NoReturn:
        self.outcome[check] = f"failed: {reason}"
        raise UserError(f"stage {self._stage} fails its self-check {check!r}: {reason}; {remedy}")


def check_token(tokenizer: Any, token_ids: Sequence[int], prompts: Iterable[str]) -> str:
    """Make sure that the text encoder reads the token, whole, in each training prompt.

    Args:
        tokenizer: of the base, knowing the token.
        token_ids: of all the token's vectors.
        prompts: as the tokenizer gets them, the token's vectors written out. The empty one, which dropped captions
            leave, needs no token.

    Returns:
        What was found, in words.

    Raises:
        UserError: a prompt in which it is not read.
    """
    limit, wanted, count = tokenizer.model_max_length, list(token_ids), 0
    for prompt in filter(None, prompts):
        ids = tokenizer(prompt, padding="max_length", max_length=limit, truncation=True).input_ids
        if not any(ids[start : start + len(wanted)] == wanted for start in range(len(ids))):
            raise UserError(
                f"self-check 'token': of the prompt {prompt!r} the text encoder reads {limit} tokens, and the "
                "subject's is not among them; shorten the prompt, or move the token to the front"
            )
        count += 1
    return f"read in each of {_count(count, 'prompt')}"


def checksum(tensor: Tensor) -> int:
    """A number for a tensor's bits, made where the tensor is: no copy leaves the GPU.

    A change of 8 aligned bytes always shows; other changes, but for one chance in 2^64 or so. It is no hash to keep out
    whoever means harm, and an order of magnitude faster than one.
    """
    if not tensor.numel():
        return 0
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if len(data) % 8 or data.storage_offset() % 8:
        data = F.pad(data, (0, -len(data) % 8)).clone()
    words = data.view(torch.int64)
    # Sums of odd multiples, modulo 2^64: such a sum cannot hide what changed in one of its terms.
    odd = torch.arange(1, 2 * min(len(words), _CHUNK), 2, device=words.device)
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for chunk in words.split(_CHUNK):
        total = total * 1_000_003 + (chunk * odd[: len(chunk)]).sum()
    return int(total)


def _modules(trained: Mapping[str, nn.Parameter], nets: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Names of trained parameters by their module. Those of one adapted layer count as one module.

    An adapter is a product whose one factor starts at zero; until that has moved, the other gets no gradient.
    """
    layers = [
        f"{component}.{name}"
        for component, net in nets.items()
        for name, module in net.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]
    modules: dict[str, list[str]] = {}
    for name in trained:
        own = name.rpartition(".")[0] or name
        module = next((layer for layer in layers if own.startswith(f"{layer}.")), own)
        modules.setdefault(module, []).append(name)
    return modules


def _above_zero(norms: Sequence[Tensor | None]) -> list[bool]:
    """Whether each is there, finite and not zero."""
    there = [norm.float() for norm in norms if norm is not None]
    together = torch.stack(there) if there else torch.empty(0)
    found = iter((together.isfinite() & (together > 0)).tolist())
    return [norm is not None and next(found) for norm in norms]


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} ({names[0]}{', ...' if len(names) > 1 else ''})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
