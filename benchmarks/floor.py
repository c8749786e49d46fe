"""The U-Net's forward and backward pass alone, as diffusers and torch do it: what no trainer of it can leave out.

    python benchmarks/floor.py BASE --resolution 512 --batch 1 --steps 20 --precision bf16 [--unet-learns]

Run by `speed.py`, under `stopwatch.py`: an optimizer of one number says when a step is over.
"""

from __future__ import annotations

import argparse

import torch

from twostage.families import load_base
from twostage.machine import usual_device

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("--resolution", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--precision", choices=PRECISIONS, default="no")
    parser.add_argument("--unet-learns", action="store_true", help="else the gradient is that of the prompts alone")
    given = parser.parse_args()
    base, device, dtype = load_base(given.base), torch.device(usual_device()), PRECISIONS[given.precision]
    # Frozen weights are kept in the precision of the pass, as all trainers keep them.
    unet = base.unet.to(device, None if given.unet_learns else dtype).requires_grad_(given.unet_learns)
    side, width = given.resolution // base.reduction, unet.config.cross_attention_dim
    noisy = torch.randn(given.batch, unet.config.in_channels, side, side, device=device)
    states = torch.randn(given.batch, 77, width, device=device, requires_grad=not given.unet_learns)
    timesteps = torch.randint(0, 1000, (given.batch,), device=device)
    number = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([number])
    number.grad = torch.zeros(())
    for _ in range(given.steps):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            predicted = base.family.predict(unet, noisy, timesteps, states)
        predicted.float().square().mean().backward()
        unet.zero_grad()
        states.grad = None
        optimizer.step()


if __name__ == "__main__":
    main()
