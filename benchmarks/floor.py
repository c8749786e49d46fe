"""The forward and backward pass alone, as diffusers, transformers and torch do it: what no trainer can leave out.

    python benchmarks/floor.py BASE --resolution 512 --batch 1 --steps 20 --precision bf16 [--learns unet]

The passes are the U-Net's; where a token learns, also those of the text encoder, to its embedding. Run by `speed.py`,
under `stopwatch.py`: an optimizer of one number says when a step is over.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from twostage.families import load_base
from twostage.machine import usual_device
from twostage.method.precision import number_format
from twostage.prompt_states import PromptStates


def _asks_for_gradients(module: Any, inputs: Any, embedded: torch.Tensor) -> torch.Tensor:
    return embedded.requires_grad_()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("--resolution", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--learns", choices=("unet", "token", "adapter"), required=True)
    given = parser.parse_args()
    base, device, dtype = load_base(given.base), torch.device(usual_device()), number_format(given.precision)
    # Frozen weights are kept in the precision of the pass, as all trainers keep them.
    whole = given.learns == "unet"
    unet = base.denoiser.to(device, None if whole else dtype).requires_grad_(whole)
    if given.learns == "token":
        base.text_encoder.to(device, dtype).get_input_embeddings().register_forward_hook(_asks_for_gradients)
    prompts = [f"a photo of thing number {number}" for number in range(given.batch)]
    side, width = given.resolution // base.reduction, unet.config.cross_attention_dim
    noisy = torch.randn(given.batch, unet.config.in_channels, side, side, device=device)
    states = torch.randn(given.batch, 77, width, device=device, requires_grad=not whole)
    timesteps = torch.randint(0, 1000, (given.batch,), device=device)
    number = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([number])
    number.grad = torch.zeros(())
    for _ in range(given.steps):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            if given.learns == "token":
                states = base.encode_text(prompts)["states"]
            predicted = base.family.predict(unet, noisy, timesteps, PromptStates(states=states), {})
        predicted.float().square().mean().backward()
        unet.zero_grad()
        states.grad = None
        optimizer.step()


if __name__ == "__main__":
    main()
