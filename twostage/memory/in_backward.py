"""The optimizer's step within the backward pass: each gradient is used and freed as soon as it is there.

So there are never gradients of the whole net in memory. Nothing else changes: parameters come out bit for bit as after
the plain step. It rules out whatever has to see all gradients before any parameter moves: clipping by the norm of the
whole gradient, gradients that add up over several backward passes, and the skipped steps of loss scaling. A gradient
that is not finite counts as zero, so that it moves a parameter no further than what the optimizer remembers does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn


class StepInBackward:
    """From when it is made, every backward pass moves the parameters.

    Args:
        optimizer: of the parameters; any whose step treats each of them apart.
        parameters: by name.

    Attributes:
        norms: of each gradient that came since they were last cleared, by the parameter's name; float32 (), on its
            device.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
        self._optimizer = optimizer
        self.norms: dict[str, Tensor] = {}
        names = {parameter: name for name, parameter in parameters.items()}
        # By its number, since the optimizer makes new groups when it is restored.
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(partial(self._move, names[parameter], number))

    def norm(self) -> Tensor:
        """Of all of them together."""
        return torch.stack(list(self.norms.values())).norm() if self.norms else torch.zeros(())

    @torch.no_grad()
    def _move(self, name: str, group: int, parameter: Tensor) -> None:
        assert parameter.grad is not None
        norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
        self.norms[name] = norm
        # Without asking the norm, for which a GPU would have to be waited for: a broken gradient counts as zero.
        parameter.grad.masked_fill_(~norm.isfinite(), 0.0)
        groups = self._optimizer.param_groups
        # The optimizer's own step, of this parameter alone.
        self._optimizer.param_groups = [{**groups[group], "params": [parameter]}]
        try:
            self._optimizer.step()
        finally:
            self._optimizer.param_groups = groups
        parameter.grad = None
