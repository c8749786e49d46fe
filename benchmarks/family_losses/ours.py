"""One step of ours on the tensors that a script had."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.family_losses.cases import CLASS_PROMPT, PRIOR_WEIGHT, PROMPT, Case
from benchmarks.family_losses.recorder import DENOISERS, Recorder
from twostage.families import Base, load_base
from twostage.family_parts import Shown
from twostage.flow import FlowMatching
from twostage.method.denoiser import DenoiserLearner, EncodedText, encode_prompts
from twostage.method.examples import Batch

Tensors = dict[str, Tensor]


def our_step(case: Case, folder: Path, theirs: Tensors) -> Tensors:
    """What a step of stage 2 is made of, by the names of `recorder`.

    Args:
        case: its options are ours, too.
        folder: of the base.
        theirs: of them, the script's latents, noise and noise levels are taken, and what it knows of its pictures; all
            else is made anew but what the case hands over: prompt states, other conditions, noisy latents, target,
            weights and loss.
    """
    base, recorder = load_base(str(folder)), Recorder()
    base.denoiser.requires_grad_(True)
    batch = _batch(base, case, theirs)
    prompts = [PROMPT, CLASS_PROMPT]
    text = EncodedText(encode_prompts(base, prompts, str, torch.device("cpu")))
    learner = DenoiserLearner(base, text, PRIOR_WEIGHT, case.snr_gamma, case.flow_weighting)
    with recorder.listening(*DENOISERS):
        loss = learner(batch).mean()
    recorder.take(loss, loss.backward, {})
    return recorder.tensors


def _batch(base: Base, case: Case, theirs: Tensors) -> Batch:
    """The script's samples; those of the class, where it has some, are the second half."""
    count = len(theirs["script.model_input"])
    samples = [_sample(base, case, theirs, place) for place in range(count)]
    own = count // 2 if case.prior else count
    weight = None
    if "weight" in case.handed:
        weight = theirs["script.weighting"].float().expand(-1, 1, *theirs["script.model_input"].shape[-2:])
    prior = _rows(samples[own:], CLASS_PROMPT, None, None) if case.prior else None
    return _rows(samples[:own], PROMPT, weight, prior)


def _rows(samples: list[Tensors], prompt: str, weight: Tensor | None, prior: Batch | None) -> Batch:
    together = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    drawn = [together.pop(name) for name in ("latents", "noise", "level")]
    return Batch(*drawn, [prompt] * len(samples), weight, together, prior)


def _sample(base: Base, case: Case, theirs: Tensors, place: int) -> Tensors:
    latents, noise, level = (theirs[f"script.{name}"][place] for name in ("model_input", "noise", "timesteps"))
    if isinstance(base.noise_scheduler, FlowMatching):
        # The script's levels are numbered from the most noise on.
        level = base.noise_scheduler.config.num_train_timesteps - 1 - theirs["script.indices"][place]
    size = corner = None
    if "script.batch.original_sizes" in theirs:
        size = tuple(theirs["script.batch.original_sizes"][place].flip(0).tolist())
        corner = tuple(theirs["script.batch.crop_top_lefts"][place].flip(0).tolist())
    target = tuple(side * base.reduction for side in (latents.shape[-1], latents.shape[-2]))
    shown = Shown(latents, size or target, target, corner or (0, 0))
    given = base.family.picture_conditions(shown, torch.Generator().manual_seed(0))
    if "enlarged" in case.handed:
        assert given.keys() == {"enlarged", "noise_level"}
        given["enlarged"] = theirs["given.sample"][place, len(latents) :]
        given["noise_level"] = theirs["given.class_labels"][place]
    return {"latents": latents, "noise": noise, "level": level, **given}
