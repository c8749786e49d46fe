"""Run a training script of diffusers as it is, and keep what its first step gave the denoiser, and the loss.

    python benchmarks/family_losses/recorder.py RECORDING.safetensors [--libraries FOLDER] SCRIPT.py [ARGUMENT ...]

Two methods of the libraries are wrapped, and nothing in the script is touched: the denoiser's forward, and accelerate's
backward, which is handed the loss and from whose caller the script's own tensors are read. Kept, by name:

    given.NAME       each tensor the denoiser was given, under the name of the parameter
    put_out          what it answered
    script.NAME      each tensor the script had at hand when it called backward: model_input, noise, timesteps ...
    loss             that it handed to backward
    gradient.NAME    of the denoiser's weights, after that backward

Imports nothing of ours, so that any interpreter that can run the script can run this. An interpreter that lacks a
package finds it in the folder of --libraries, if it is there; where there is no torchvision, a stand-in beside this
file does what the scripts ask of it. It prepares pictures otherwise than torchvision where it resizes them, which does
not matter here: what is compared begins with the tensors.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch
import transformers
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

DENOISERS = (UNet2DConditionModel, SD3Transformer2DModel)
STAND_INS = Path(__file__).resolve().parent / "stand_ins"


class Recorder:
    """What the first step of a training was made of; see the module.

    Attributes:
        tensors: kept so far.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._denoiser: nn.Module | None = None

    @property
    def complete(self) -> bool:
        return "loss" in self.tensors

    @contextmanager
    def listening(self, *kinds: type[nn.Module]) -> Iterator[None]:
        """Within, denoisers of these kinds are heard."""
        before = [kind.forward for kind in kinds]
        for kind, forward in zip(kinds, before, strict=True):
            kind.forward = self._heard(forward)
        try:
            yield
        finally:
            for kind, forward in zip(kinds, before, strict=True):
                kind.forward = forward

    def _heard(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(forward)

        def heard(net: nn.Module, *arguments: Any, **named: Any) -> Any:
            answer = forward(net, *arguments, **named)
            # Pictures that a script draws by itself are drawn without gradients.
            if torch.is_grad_enabled() and not self.complete:
                assert self._denoiser is None, "the denoiser was asked twice in one step"
                self._denoiser = net
                given = signature.bind(net, *arguments, **named).arguments
                self._keep("given", {name: value for name, value in given.items() if name != "self"})
                self._keep("put_out", answer[0])
            return answer

        return heard

    def take(self, loss: Tensor, backward: Callable[[], Any], script: dict[str, Any]) -> Any:
        """The step's end: its loss, what computes the gradients of that, and what else was at hand."""
        if self.complete:
            return backward()
        assert self._denoiser is not None, "a loss before the denoiser was asked"
        self._keep("script", script)
        answer = backward()
        self._keep("gradient", {name: weight.grad for name, weight in self._denoiser.named_parameters()})
        self._keep("loss", loss)
        return answer

    def _keep(self, name: str, value: Any) -> None:
        for place, tensor in tensors(name, value):
            self.tensors[place] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def record(script: Path, arguments: list[str]) -> dict[str, Tensor]:
    """Run a script in this process, and what its first step was made of."""
    recorder = Recorder()
    backward = accelerate.Accelerator.backward

    def heard(accelerator: Any, loss: Tensor, **named: Any) -> Any:
        at_hand = inspect.currentframe().f_back.f_locals
        return recorder.take(loss, lambda: backward(accelerator, loss, **named), at_hand)

    accelerate.Accelerator.backward = heard
    sys.argv, sys.path[0] = [str(script), *arguments], str(script.parent)
    with recorder.listening(*DENOISERS):
        runpy.run_path(str(script), run_name="__main__")
    if not recorder.complete:
        sys.exit(f"{script} ended without a step")
    return recorder.tensors


def tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors in nested dictionaries, under their dotted names; a list of numbers, or of such lists, is one, too."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from tensors(f"{name}.{key}", inner)
    elif isinstance(value, (list, tuple)) and value and _is_numbers(value):
        yield name, torch.tensor(value)


def _is_numbers(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_numbers(inner) for inner in value) and len({str(type(inner)) for inner in value}) <= 1
    return isinstance(value, (int, float))


def find_libraries(folder: Path | None) -> dict[str, str]:
    """Where what the interpreter lacks comes from; and the versions of what counts."""
    # The libraries ask once whether there is a torchvision, and would take the stand-in for all of it.
    transformers.utils.is_torchvision_available()
    if folder is not None:
        sys.path.append(str(folder))
    if importlib.util.find_spec("torchvision") is None:
        sys.path.append(str(STAND_INS))
    modules = (accelerate, diffusers, torch, transformers)
    vision = importlib.import_module("torchvision").__version__
    return {module.__name__: module.__version__ for module in modules} | {"torchvision": vision}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recording", type=Path)
    parser.add_argument("--libraries", type=Path, help="folder of packages that this interpreter lacks")
    parser.add_argument("script", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    versions = find_libraries(asked.libraries)
    save_file(record(asked.script, asked.arguments), asked.recording, {"versions": json.dumps(versions)})


if __name__ == "__main__":
    main()
