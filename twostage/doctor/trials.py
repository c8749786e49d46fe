"""What is to be tried on a machine, each of it on its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import get_args

from twostage.doctor import attempts
from twostage.doctor.attempts import Told
from twostage.recipe import Memory


@dataclass(frozen=True)
class Trial:
    """Something to be tried.

    Attributes:
        area: what it belongs to.
        name: of it, within the area.
        run: tries it; raises `Absent`, `Untried`, or where it fails whatever it fails with.
        package: third-party code that is tried in a process of its own, and only where it is installed.
        vital: whether nothing can be trained where it fails.
        needs: keys of trials that this one is in vain without.
    """

    area: str
    name: str
    run: Callable[[], Told]
    package: str = ""
    vital: bool = False
    needs: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What it is called between processes."""
        return f"{self.area}: {self.name}"


_TORCH, _LIBRARIES = "torch: computes", "libraries: import"
_PACKAGES = {
    "bitsandbytes": ("torch", "bitsandbytes"),
    "torchao": ("torch", "torchao.optim"),
    "tensorboard": ("torch.utils.tensorboard",),
    "wandb": ("wandb",),
    "ray": ("ray",),
}


def _trials() -> list[Trial]:
    """Those in need of nothing first; what takes longest comes last."""
    bare, needs = (_TORCH,), (_TORCH, _LIBRARIES)
    own = partial(Trial, needs=needs)
    optimizers = get_args(Memory.model_fields["optimizer"].annotation)
    return [
        Trial("torch", "computes", attempts.compute, vital=True),
        Trial("libraries", "import", attempts.import_training, vital=True, needs=bare),
        own("training", "pocket model", attempts.train_pocket, vital=True),
        own("attention", "float32", partial(attempts.attend, "float32"), vital=True),
        own("attention", "bfloat16", partial(attempts.attend, "bfloat16")),
        own("attention", "float16", partial(attempts.attend, "float16")),
        *(own("attention", f"torch, {kernel}", partial(attempts.attend_fused, kernel)) for kernel in attempts.KERNELS),
        *(own("optimizers", name, partial(attempts.optimize, name)) for name in optimizers),
        own("optimizers", "adamw8bit, state on the host", partial(attempts.optimize, "adamw8bit", "host")),
        *(own("frozen base", kept, partial(attempts.keep_frozen, kept)) for kept in attempts.OFF),
        own("mixed precision", "bf16", partial(attempts.compute_in_half, "bf16")),
        own("mixed precision", "fp16", partial(attempts.compute_in_half, "fp16")),
        own("planning", "Stable Diffusion 1.5", attempts.outline_sizes),
        Trial("attention", "xformers", attempts.attend_by_xformers, package="xformers"),
        *(
            Trial("packages", name, partial(attempts.import_modules, *modules), package=name)
            for name, modules in _PACKAGES.items()
        ),
        own("speed.compile", "torch.compile", attempts.compile_function),
    ]


TRIALS = _trials()
