"""Do pictures of one prompt differ? DreamBooth's DIV: mean LPIPS over their pairs (arXiv 2208.12242).

From 0 up, seldom above 1; higher is better. LPIPS (arXiv 1801.03924) with AlexNet, through its authors' library `lpips`
where it is installed; it downloads AlexNet when first used.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import combinations
from math import inf
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from twostage.evaluation.figures import Figure, LeftOut, of_prompts
from twostage.evaluation.material import Material

# AlexNet's last layers would have no pixel left of a smaller picture.
_LEAST = 64


@cache
def _network() -> Any:
    """Raises LeftOut where it cannot be had."""
    if find_spec("lpips") is None:
        raise LeftOut("the library lpips is not installed; run 'pip install lpips'")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # It asks torchvision for AlexNet in a way that has become old.
            return import_module("lpips").LPIPS(net="alex", verbose=False).eval()
    except OSError as error:
        raise LeftOut(f"lpips could not download AlexNet ({error}); run it once where there is a network") from error
    except (ImportError, RuntimeError) as error:  # torchvision raises the latter where torch is another build
        reason = " ".join(str(error).split())[:200]
        raise LeftOut(f"the library lpips cannot be loaded ({reason}); install it and torchvision anew") from error


def _pixels(image: Image.Image) -> Tensor:
    """(3, H, W), -1..1."""
    side = max(image.size)
    shown = image.convert("RGB").resize((max(side, _LEAST),) * 2, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(shown, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def _figure(material: Material) -> Figure:
    shots = material.get("subject")
    groups = of_prompts(shots.places)
    if min(map(len, groups)) < 2:
        raise LeftOut("one picture a prompt has nothing to differ from; draw two (--images-per-prompt 2)")
    network, values = _network(), []
    for group in groups:
        pictures = torch.stack([_pixels(shots.images[index]) for index in group])
        first, second = zip(*combinations(range(len(pictures)), 2), strict=True)
        with torch.inference_mode():
            values.append(float(network(pictures[list(first)], pictures[list(second)]).mean()))
    return Figure("diversity_lpips", "Diversity (LPIPS)", tuple(values), 0, inf, "higher", shots.prompts)


FIGURES = {"diversity_lpips": _figure}
