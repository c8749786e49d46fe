"""Are pictures of the class still distributed as the base's? Kernel inception distance (arXiv 1801.01401), on DINO.

    KID = mean k(x, x') + mean k(y, y') - 2 mean k(x, y),    k(x, y) = (x . y / D + 1)^3

over pairs of different pictures of one set, x of the result and y of the base: the unbiased estimate of a squared
maximum mean discrepancy, right also for few pictures where FID is not. -16..16, lower is better; around 0, also a
little below, where the sets do not differ. Features are DINO's scaled to length sqrt(D), since on vectors of length 1
the kernel is all but linear; x . y / D is then the cosine. Figures do not compare with those on Inception features.
"""

from __future__ import annotations

from torch import Tensor

from twostage.evaluation.figures import Figure, LeftOut
from twostage.evaluation.material import Material


def kid(result: Tensor, base: Tensor) -> float:
    """The equation above of features (N, D) and (M, D) of length 1, at least two of each."""

    def within(features: Tensor) -> Tensor:
        kernel, count = _kernel(features, features), len(features)
        return (kernel.sum() - kernel.diagonal().sum()) / (count * (count - 1))

    return float(within(result) + within(base) - 2 * _kernel(result, base).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x.double() @ y.double().T + 1) ** 3


def _figure(material: Material) -> Figure:
    if material.get("class") is material.get("base_class"):
        raise LeftOut("it is a distance from the base, which has none from itself")
    after, before = material.embedded("dino", "class"), material.embedded("dino", "base_class")
    if min(len(after), len(before)) < 2:
        raise LeftOut("one picture of the class has no distribution; draw more (--num-class-images)")
    return Figure("kid", "KID of class pictures (DINO)", (kid(after, before),), -16, 16, "lower")


FIGURES = {"kid": _figure}
