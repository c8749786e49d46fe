"""What waits on the host between the forward and the backward pass comes back bit for bit, and is not on the card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.watching import metrics, without
from twostage.display import Display
from twostage.memory.activations import KeptOnHost, keeping
from twostage.memory.simulator import simulation
from twostage.recipe import Adapter, Memory, Prior, Recipe, Sample, Stage1, Stage2
from twostage.run import train

CPU = torch.device("cpu")


class Net(nn.Module):
    """Keeps strided, transposed and shared tensors."""

    def __init__(self, blocks: int, checkpointing: bool = False) -> None:
        super().__init__()
        self.into = nn.ModuleList(nn.Linear(64, 256) for _ in range(blocks))
        self.out = nn.ModuleList(nn.Linear(128, 64) for _ in range(blocks))
        self._checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:
        for into, out in zip(self.into, self.out, strict=True):
            if self._checkpointing:
                x = checkpoint(self._block, x, into, out, use_reentrant=False)
            else:
                x = self._block(x, into, out)
        return x

    @staticmethod
    def _block(x: Tensor, into: nn.Module, out: nn.Module) -> Tensor:
        hidden, gate = into(F.layer_norm(x, (64,))).chunk(2, dim=-1)
        heads = (hidden * F.gelu(gate)).unflatten(-1, (2, 64)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(heads, heads, heads)
        return x + out(attended.transpose(1, 2).flatten(2))


def gradients(net: Net, within: Any) -> list[Tensor]:
    x = torch.randn(2, 32, 64, generator=torch.Generator().manual_seed(0))
    with within:
        loss = net(x).square().mean()
    return list(torch.autograd.grad(loss, list(net.parameters())))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_the_same_bit_for_bit(checkpointing: bool, dtype: torch.dtype | None) -> None:
    torch.manual_seed(0)
    net = Net(3, checkpointing)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        usual = gradients(net, keeping(Memory(), [net], CPU)())
        found = gradients(net, KeptOnHost([net], CPU, smallest=0)())
    assert all(torch.equal(one, other) for one, other in zip(usual, found, strict=True))


def test_what_is_changed_after_it_was_kept_is_kept_as_it_was() -> None:
    weight = nn.Parameter(torch.ones(4))
    with KeptOnHost([], CPU, smallest=0)():
        factor = torch.ones(4)
        first = weight * factor
        factor.mul_(2)
        loss = (first + weight * factor).sum()
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [3.0] * 4


@pytest.mark.parametrize("checkpointing", [False, True])
def test_between_the_passes_nothing_that_is_kept_is_on_the_card(checkpointing: bool) -> None:
    with simulation() as trace:
        net = Net(4, checkpointing)
        x = torch.empty(4, 1024, 64)
        resident = trace.current
        with keeping(Memory(activations="host"), [net], CPU)():
            loss = net(x).square().mean()
        # Norms' means and attention's sums are small.
        assert trace.current - resident < x.nbytes / 2
        # Checkpointed blocks keep what they are given, and the square what it is of.
        assert trace.host == 5 * x.nbytes if checkpointing else trace.host > 20 * x.nbytes
        loss.backward()
        del loss
        assert trace.host == 0


def test_a_storage_goes_once_however_often_it_is_kept() -> None:
    with simulation() as trace:
        weights = [nn.Parameter(torch.empty(256, 256)) for _ in range(3)]
        x = torch.empty(1024, 256)
        with KeptOnHost([], CPU, smallest=1 << 19)():
            kept = [x @ weights[0], x.view(2, 512, 256) @ weights[1], x[:512] @ weights[2]]
        assert trace.host == x.nbytes
        del kept


def test_weights_and_buffers_stay_where_they_are() -> None:
    with simulation() as trace:
        net = nn.Sequential(nn.Linear(256, 256), nn.BatchNorm1d(256).eval()).requires_grad_(False)
        x = torch.empty(1, 256, requires_grad=True)
        with KeptOnHost([net], CPU, smallest=1 << 14)():
            out = net(x)
        assert trace.host == 0
        del out


RUNS: dict[str, dict[str, Any]] = {
    "bfloat16, in the backward pass, with a prior, half streamed": {
        "memory": {"weights": "bfloat16", "optimizer": "adamw8bit", "step_in_backward": True, "streamed": 0.5},
        "stage2": {"gradient_checkpointing": True, "max_grad_norm": 0.0},
        "prior": Prior(preserve=True, num_class_images=1, num_inference_steps=1),
    },
    "adapter, autocast": {
        "stage2": {"train": "adapter"},
        "adapter": Adapter(kind="lora", rank=2),
        "mixed_precision": "bf16",
    },
    "text encoder too, added up": {
        "memory": {"optimizer": "adafactor"},
        "stage2": {"train_text_encoder": True, "gradient_accumulation_steps": 2},
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_runs_are_the_same_bit_for_bit_with_all_of_it_on_the_host(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("twostage.memory.activations._SMALLEST", 0)
    more = {"stage1": Stage1(steps=1, learning_rate=5e-3, batch_size=2)} | RUNS[name]
    settings = {"optimizer": "adamw8bit"} | more.pop("memory", {})
    stage2 = Stage2(**{"steps": 2, "learning_rate": 1e-3, "batch_size": 2} | more.pop("stage2"))
    runs = []
    for where in ("card", "host"):
        memory = Memory(**settings, optimizer_state=where, activations=where)
        recipe = without(tiny_recipe, memory=memory, stage2=stage2, sample=Sample(prompts=(), per_prompt=0), **more)
        runs.append(train(recipe, tmp_path / where, display=Display()))
    card, host = runs
    files = [file.relative_to(card) for file in sorted(card.rglob("*.safetensors"))]
    assert len(files) >= 2
    assert all((card / file).read_bytes() == (host / file).read_bytes() for file in files)
    assert metrics(card) == metrics(host)
