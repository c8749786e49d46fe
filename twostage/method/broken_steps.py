"""Steps whose loss or gradient is not finite: no such gradient moves a weight, and a stage ends where they persist."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from twostage.errors import UserError

# In a row. Loss scaling begins at 2^16 and halves with each, so that after as many it is below one.
PATIENCE = 20


class BrokenSteps:
    """Of one stage.

    Args:
        stage: 1 or 2.
        learning_rate: of it, for the message.
        mixed_precision: "no", "fp16" or "bf16".

    Attributes:
        skipped: how many there were.
        in_a_row: how many of them just now.
    """

    def __init__(self, stage: int, learning_rate: float, mixed_precision: str) -> None:
        self._stage, self._rate, self._precision = stage, learning_rate, mixed_precision
        self.skipped = self.in_a_row = 0

    def is_one(self, loss: float, norm: float) -> bool:
        """Whether a step with that loss and gradient norm is to be skipped."""
        if math.isfinite(loss) and math.isfinite(norm):
            self.in_a_row = 0
            return False
        self.skipped += 1
        self.in_a_row += 1
        return True

    def check(self, step: int, loss: float, trained: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> None:
        """Make sure that it is worth going on.

        Args:
            step: that broke.
            loss: of it.
            trained: what trains, by name.
            norms: of its gradients, by the parameter's name.

        Raises:
            UserError: too many broke in a row; why.
        """
        if self.in_a_row < PATIENCE:
            return
        remedy = f"lower stage{self._stage}.learning_rate (now {self._rate:g})"
        if self._precision != "no":
            remedy = f"train without mixed_precision (now {self._precision}), or {remedy}"
        raise UserError(
            f"stage {self._stage} broke at step {step}: {self.in_a_row} steps in a row had no finite loss or gradient, "
            f"and {_cause(loss, trained, norms)}; {remedy}. What was saved before is whole"
        )


def _cause(loss: float, trained: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> str:
    broken = [name for name, tensor in trained.items() if not bool(tensor.isfinite().all())]
    if broken:
        return f"{broken[0]} has become infinite or NaN"
    if not math.isfinite(loss):
        return f"the loss is {loss} though all that trains is finite: what is frozen, or the precision, overflows"
    broken = [name for name, norm in norms.items() if not math.isfinite(float(norm))]
    return f"the gradient of {broken[0] if broken else 'what trains'} is not finite though the loss, {loss:g}, is"
