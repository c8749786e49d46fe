"""DeepFloyd IF, stage II: a U-Net that makes pictures of 256 pixels of those of 64."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn import functional as F

from twostage.family import Family
from twostage.family_parts import Drawing, Shown
from twostage.loading import loading
from twostage.pixel_cascade import COLOURS, PixelStage
from twostage.prompt_states import PromptStates

_NOISING = "image_noising_scheduler"
# How often the side of a small picture goes into that of the large one.
_TIMES = 4


class DeepFloydIFSuperResolution(PixelStage):
    """It is shown the small picture, enlarged and noised, and told how much noise that got.

    In training, the small picture is the photo itself, made smaller, and the noise of any level, as Imagen had it
    (arXiv 2205.11487, section 2.3): so it learns to correct what the stage before it gets wrong. At the highest level
    nothing of the picture is left, and it draws by itself: so it does where there is none.
    """

    pipeline = "IFSuperResolutionPipeline"
    title = "DeepFloyd IF, stage II"
    enlarges = "IFPipeline"
    call_arguments = {
        "image": "torch.zeros(1, 3, 8, 8)",
        "noise_level": f"pipe.{_NOISING}.config.num_train_timesteps - 1",
        **PixelStage.call_arguments,
    }
    _noising: DDPMScheduler

    def configured(self, folder: Path) -> Family:
        """As in `Family`: with the folder's own levels of noise for small pictures."""
        own = copy(self)
        with loading(folder / _NOISING):
            own._noising = DDPMScheduler.from_pretrained(folder, subfolder=_NOISING, local_files_only=True)
            if own._noising.config.num_train_timesteps < 1:
                raise ValueError("there is no level of noise")
        return own

    @cached_property
    def components(self) -> tuple[str, ...]:
        """As in `Family`."""
        return (*super().components, _NOISING)

    def multiple(self, folder: Path) -> int:
        """As in `Family`."""
        return max(super().multiple(folder), _TIMES)

    def picture_conditions(self, shown: Shown, generator: torch.Generator) -> dict[str, Tensor]:
        """The picture made small, enlarged and noised, (3, H, W), and the level of that noise."""
        height, width = shown.mean.shape[-2:]
        picture = shown.mean.unsqueeze(0)
        small = F.interpolate(picture, (height // _TIMES, width // _TIMES), mode="bicubic", antialias=True).clamp(-1, 1)
        enlarged = F.interpolate(small, (height, width), mode="bilinear", align_corners=True)
        level = torch.randint(self._noising.config.num_train_timesteps, (1,), generator=generator)
        noise = torch.randn(enlarged.shape, generator=generator)
        return {"enlarged": self._noising.add_noise(enlarged, noise, level)[0], "noise_level": level[0]}

    def predict(
        self, denoiser: Any, noisy: Tensor, timesteps: Tensor, states: PromptStates, given: Mapping[str, Tensor]
    ) -> Tensor:
        """As in `Family`; the variance is left out."""
        output: Tensor = denoiser(
            torch.cat([noisy, given["enlarged"]], dim=1),
            timesteps,
            encoder_hidden_states=states["states"],
            class_labels=given["noise_level"],
            return_dict=False,
        )[0]
        return output[:, :COLOURS]

    def picture_arguments(self, pipeline: Any, drawing: Drawing) -> dict[str, Any]:
        """As in `PixelStage`: the small pictures; where there are none, noise alone."""
        if drawing.small is not None:
            return {"image": drawing.small}
        last = getattr(pipeline, _NOISING).config.num_train_timesteps - 1
        return {"image": torch.zeros(len(drawing.noise), COLOURS, 8, 8), "noise_level": last}


FAMILY = DeepFloydIFSuperResolution()
