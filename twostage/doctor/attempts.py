"""How things are tried: a small piece of what training does with each, and its answer checked.

Nothing heavy is imported before a trial begins: a library that is broken breaks the trials that need it, and no others.
"""

from __future__ import annotations

import copy
import importlib
import math
import os
import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# What a trial tells: `says`, for people, and facts for `mistakes`.
Told = dict[str, Any]
# Relative L2 difference that is still right: of a layer that keeps its weights in few bits, to the whole one.
OFF = {"8bit": 0.02, "4bit": 0.2}
# Of the matrices that are multiplied to see how fast that is: a card is at work on smaller ones for no time at all.
_SIDE = {"cpu": 256, "cuda": 2048}
# torch's own for attention, but for the one that writes it out; card, system and version decide which there are.
KERNELS = {"flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "cudnn": "CUDNN_ATTENTION"}
# What torch says where this machine has no such kernel, which is no mistake.
_NO_KERNEL = ("No available kernel", "No viable backend")


class Absent(Exception):
    """There is nothing of the kind on this machine, and nothing is wrong with that."""


class Untried(Exception):
    """It is for other machines, or takes too long."""


class Wrong(Exception):
    """It runs, and its answer is wrong."""


def _device() -> torch.device:
    import torch

    from twostage.machine import usual_device

    return torch.device(usual_device())


def _off(found: torch.Tensor, right: torch.Tensor) -> float:
    """Relative difference in the L2 norm; infinite where something is not finite."""
    one, other = (tensor.detach().float().cpu() for tensor in (found, right))
    off = float((one - other).norm() / other.norm())
    return off if math.isfinite(off) else math.inf


def _check_near(off: float, limit: float) -> None:
    if not off <= limit:
        raise Wrong(f"the answer is wrong (off by {off:.0%})")


def compute() -> Told:
    """A matrix product on the device that training takes."""
    import torch

    from twostage.machine import describe, room_for_tensors

    device = _device()
    told: Told = {"cuda": torch.version.cuda, "hip": torch.version.hip, "device": device.type}
    if device.type == "cuda":
        told["free"], told["total"] = torch.cuda.mem_get_info(device)
    elif torch.version.cuda or torch.version.hip:
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            told["refusal"] = " ".join(str(error).split())
    # On a card that this torch has no kernels for, the first is what fails.
    torch.manual_seed(0)
    one, other = torch.randn(2, 64, 64)
    _check_near(_off(one.to(device) @ other.to(device), one @ other), 0.01)
    built = f"CUDA {told['cuda']}" if told["cuda"] else f"ROCm {told['hip']}" if told["hip"] else "the CPU alone"
    room = room_for_tensors(device) / 2**30
    return told | {"says": f"{describe(device)}; torch is built for {built}; {room:.1f} GiB for a process to take"}


def import_training() -> Told:
    """Everything that a run imports."""
    importlib.import_module("twostage.run")
    return {"says": "all that training imports"}


def train_pocket() -> Told:
    """Forward and backward through the pocket model, on a picture of its own world; it must still know that."""
    import numpy as np
    import torch

    from twostage.families import load_base
    from twostage.method.loss import denoising_question
    from twostage.method.sampling import encode_visiting
    from twostage.pocket import world

    device, base = _device(), load_base("pocket")
    rng = np.random.default_rng(0)
    subject = world.sample_subject(rng, "backpack")
    picture = world.draw(subject, world.sample_scene(rng, subject.class_name in world.LIVE, plain=True))
    pixels = torch.from_numpy(np.asarray(picture, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    latents, _ = base.family.encode_images(base.vae.to(device), pixels.to(device))
    with torch.no_grad():
        states = encode_visiting(base, ["a photo of a backpack"], device)
    timesteps = torch.tensor([300, 500, 700], device=device)
    latents = latents.expand(3, -1, -1, -1)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(device)
    question = denoising_question(base.noise_scheduler, latents, noise, timesteps)
    unet = base.denoiser.to(device).requires_grad_(True)
    predicted = base.family.predict(unet, question.noisy, question.timesteps, states.repeated(3), {})
    loss = (predicted - question.target).square().mean()
    loss.backward()
    found, nothing = float(loss.detach()), float(question.target.square().mean())
    if not found < nothing / 2:
        raise Wrong(f"it predicts no noise (loss {found:.2g}; {nothing:.2g} is that of zeros): its weights are off")
    gradients = [parameter.grad for parameter in unet.parameters()]
    if not all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients):
        raise Wrong("its gradients are not finite")
    return {"says": f"forward and backward; loss {found:.2f}, where zeros have {nothing:.2f}"}


def _outline() -> Any:
    """Stable Diffusion 1.5's U-Net: kernels differ in the widths of heads that they have."""
    from twostage.planning.outlined import outline_base

    return outline_base("sd15").outline("unet")


def attend(name: str, kernel: str | None = None) -> Told:
    """torch's own attention in a number format, by the kernel that torch chooses or by one of `KERNELS`."""
    import torch

    from twostage.memory.attention import ROUNDING, largest_difference, set_attention

    device, dtype = _device(), getattr(torch, name)
    if device.type == "cpu" and dtype == torch.float16:
        raise Untried("float16 is for GPUs")
    unet = _outline()
    set_attention(unet, "sdpa")
    try:
        with _only(kernel):
            off = largest_difference(unet, device, dtype)
    except RuntimeError as error:
        if kernel and any(said in str(error) for said in _NO_KERNEL):
            raise Absent(f"no such kernel here for {name}") from error
        raise
    _check_near(off, ROUNDING[dtype])
    return {"says": f"forward and backward, {off:.1g} from attention written out"}


def _only(kernel: str | None) -> AbstractContextManager[Any]:
    if kernel is None:
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(getattr(SDPBackend, KERNELS[kernel]))


def attend_fused(kernel: str) -> Told:
    """One of `KERNELS`, in a number format that it is for."""
    return attend("float32" if _device().type == "cpu" else "float16", kernel)


def attend_by_xformers() -> Told:
    """As a run decides whether it takes xformers."""
    importlib.import_module("xformers.ops")
    import torch

    from twostage.errors import UserError
    from twostage.memory.attention import choose_attention

    device = _device()
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    try:
        choose_attention(_outline, "xformers", device, dtype)
    except UserError as error:
        if device.type == "cpu":
            raise Absent(f"it imports; not used on a CPU: {error}") from error
        raise
    return {"says": "forward and backward as attention written out"}


def optimize(name: str, place: str = "card") -> Told:
    """Two steps towards a goal, and the second again from a checkpoint."""
    import torch

    from twostage.memory.optimizers import Updates, build_optimizer
    from twostage.recipe import Memory, Stage2

    device = _device()
    torch.manual_seed(0)
    start, goal = torch.randn(2, 96, 64).to(device)
    updates = Updates(Memory.model_validate({"optimizer": name, "optimizer_state": place}), address=(0, 2))

    def begin(values: torch.Tensor) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        parameter = torch.nn.Parameter(values.clone())
        return parameter, build_optimizer({"weight": parameter}, Stage2(steps=2, learning_rate=0.05), updates)

    def step(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        optimizer.zero_grad()
        (parameter - goal).square().sum().backward()
        optimizer.step()
        return parameter.detach().clone()

    unbroken = begin(start)
    once, state = step(*unbroken), copy.deepcopy(unbroken[1].state_dict())
    twice = step(*unbroken)
    resumed = begin(once)
    resumed[1].load_state_dict(state)
    again = step(*resumed)
    ways = [float((values - goal).norm()) for values in (start, once, twice)]
    if not ways[0] > ways[1] > ways[2]:
        raise Wrong("its steps lead nowhere: " + ", ".join(f"{way:.4g}" for way in ways) + " from the goal")
    if not torch.equal(twice, again):
        raise Wrong("from a checkpoint it steps otherwise than without")
    return {"says": "a step, and one more, the same from a checkpoint"}


def keep_frozen(kept: str) -> Told:
    """Layers kept as memory.frozen_base says, beside the whole ones."""
    import torch

    from twostage.memory.frozen import place_frozen

    device = _device()
    torch.manual_seed(0)
    shown = torch.randn(2, 64, 8, 8, device=device, requires_grad=True)
    net = torch.nn.Sequential(torch.nn.Conv2d(64, 64, 3, padding=1), torch.nn.Flatten(2), torch.nn.Linear(64, 64))
    small = copy.deepcopy(net).requires_grad_(False)
    place_frozen(small, kept, device, torch.float32)
    weight = torch.randn(2, 64, 64, device=device)
    answers = []
    for each in (small, net.to(device)):
        output = each(shown)
        answers.append((output, *torch.autograd.grad((output * weight).sum(), [shown])))
    off = max(_off(found, right) for found, right in zip(*answers, strict=True))
    _check_near(off, OFF[kept])
    return {"says": f"forward and backward, {off:.1%} from the whole weights"}


def compute_in_half(mixed_precision: str) -> Told:
    """A layer under autocast, and how long a matrix product takes."""
    import torch

    from twostage.memory.attention import ROUNDING
    from twostage.method.precision import number_format

    device, dtype = _device(), number_format(mixed_precision)
    torch.manual_seed(0)
    shown = torch.randn(2, 32, 16, 16, device=device, requires_grad=True)
    net = torch.nn.Sequential(torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.Flatten(2), torch.nn.Linear(256, 64))
    net.to(device)
    answers = []
    for enabled in (True, False):
        with torch.autocast(device.type, dtype, enabled=enabled):
            output = net(shown)
        answers.append((output, *torch.autograd.grad(output.float().square().mean(), [shown])))
    off = max(_off(found, right) for found, right in zip(*answers, strict=True))
    _check_near(off, ROUNDING[dtype])
    times = _seconds_of_product(device, dtype) / _seconds_of_product(device, torch.float32)
    side = _SIDE[device.type]
    return {
        "says": f"forward and backward; a product of {side} takes {shown_times(times)} times as long as in float32"
    } | {"times": times}


def shown_times(times: float) -> str:
    """Two digits of small ones, whole large ones."""
    return f"{times:.2g}" if times < 10 else f"{times:.0f}"


def _seconds_of_product(device: torch.device, dtype: torch.dtype) -> float:
    """Of the fastest of a few."""
    import torch

    matrix = torch.randn(_SIDE[device.type], _SIDE[device.type]).to(device, dtype)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        product = matrix @ matrix
        float(product[0, 0])  # Waits for the card.
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def compile_function() -> Told:
    """What speed.compile needs: a C++ compiler on a CPU, Triton and a C compiler on a card."""
    import torch

    device = _device()
    if device.type == "cpu":
        found = next(filter(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++", "cl")), None)
        raise Untried(f"it is for GPUs; on a CPU it wants a C++ compiler, and has {found or 'none'}")

    def compute(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(values @ values).mean()

    torch.manual_seed(0)
    shown = torch.randn(64, 64, device=device, requires_grad=True)
    answers = []
    for each in (torch.compile(compute), compute):
        output = each(shown)
        answers.append((output, *torch.autograd.grad(output, [shown])))
    _check_near(max(_off(found, right) for found, right in zip(*answers, strict=True)), 0.01)
    return {"says": "a product and its activation, forward and backward"}


def outline_sizes() -> Told:
    """What the default recipe writes with Stable Diffusion 1.5: what `plan` says, but for the sample pictures."""
    from twostage.planning.outlined import outline_base
    from twostage.planning.phases import Phase, Rehearsed, Saved, Work
    from twostage.planning.room import room
    from twostage.recipe_file import load_recipe

    recipe, base = load_recipe("two-stage", base="sd15"), outline_base("sd15")
    nets = {
        name: 4 * sum(parameter.numel() for parameter in base.outline(name).parameters()) for name in base.family.models
    }
    assert recipe.stage2 is not None
    unet = nets["unet"]
    saved = Saved(recipe.stage2.steps, (unet, 2 * unet), unet)  # AdamW has two moments.
    phase = Phase("a step", 0, 0, Work(), 0, "step")
    disk = room(recipe, Rehearsed([phase], [saved], unet), base.resolution).disk
    told = f"its weights take {sum(nets.values()) / 1e9:.1f} GB of disk, a run of two-stage up to {disk / 1e9:.0f} GB"
    return {"says": told, "run": disk, "weights": sum(nets.values())}


def import_modules(*modules: str) -> Told:
    """No more than that: training does without them."""
    for module in modules:
        importlib.import_module(module)
    return {"says": "it imports"}
