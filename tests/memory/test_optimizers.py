"""Our optimizers, held against torch's, transformers', bitsandbytes' and torchao's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor as StockAdafactor

from twostage.memory.adafactor import Adafactor
from twostage.memory.adamw import AdamW
from twostage.memory.optimizers import Updates, build_optimizer
from twostage.memory.simulator import simulation
from twostage.recipe import Memory, Stage2

ADAM: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
SHAPES = ((64, 64), (32, 16, 3, 3), (64,), (100, 50))
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def adamw(bits: int) -> Make:
    return lambda parameters: AdamW([{"params": parameters}], bits=bits, address=(0, 2), **ADAM)


def adafactor(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return Adafactor([{"params": parameters}], lr=1e-3, weight_decay=0.01, address=(0, 2))


def built(memory: Memory, **options: Any) -> Make:
    """As a run has it."""

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        named = {str(number): parameter for number, parameter in enumerate(parameters)}
        settings = Stage2(steps=1, learning_rate=1e-3, **options)
        return build_optimizer(named, settings, Updates(memory, {}, (0, 2)))

    return make


def parameters_of(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    draws = torch.Generator().manual_seed(0)
    return [nn.Parameter((torch.randn(shape, generator=draws) * 0.1).to(dtype)) for shape in shapes]


def after(make: Make, parameters: list[nn.Parameter], steps: int = 20) -> tuple[list[Tensor], torch.optim.Optimizer]:
    """What the parameters are after some steps of gradients that are the same for all, and what moved them."""
    optimizer, draws = make(parameters), torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in parameters:
            # Of several magnitudes, as gradients are.
            gradient = torch.randn(p.shape, generator=draws) * 10 ** (-2 * torch.rand(p.shape, generator=draws))
            p.grad = gradient.to(p.dtype)
        optimizer.step()
    return [parameter.detach().float() for parameter in parameters], optimizer


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = [value for entries in optimizer.state.values() for value in entries.values() if torch.is_tensor(value)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def gap(ours: list[Tensor], theirs: list[Tensor], start: list[nn.Parameter]) -> float:
    """Distance of two results, as a share of the way that the second has come."""
    distance = torch.cat([(one - other).flatten() for one, other in zip(ours, theirs, strict=True)])
    way = torch.cat([(other - own.detach().float()).flatten() for other, own in zip(theirs, start, strict=True)])
    return float(distance.norm() / way.norm())


# Parity


def test_adamw_with_float32_moments_is_torchs_bit_for_bit() -> None:
    ours, _ = after(adamw(32), parameters_of(SHAPES))
    theirs, _ = after(lambda p: torch.optim.AdamW(p, foreach=False, **ADAM), parameters_of(SHAPES))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_adamw_in_8_bits_goes_where_bitsandbytes_goes() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    shapes = ((128, 64), (64, 64, 3, 3))
    ours, mine = after(adamw(8), parameters_of(shapes))
    theirs, stock = after(lambda p: bnb.optim.AdamW8bit(p, **ADAM), parameters_of(shapes))
    exact, _ = after(adamw(32), parameters_of(shapes))
    assert gap(ours, theirs, parameters_of(shapes)) < 0.02
    assert gap(ours, exact, parameters_of(shapes)) < 1.1 * gap(theirs, exact, parameters_of(shapes))
    assert state_bytes(mine) < 1.02 * state_bytes(stock)


@pytest.mark.parametrize("bits", [8, 4])
def test_adamw_in_few_bits_goes_where_torchaos_goes(bits: int) -> None:
    pytest.importorskip("torchao")
    from torchao.optim import AdamW4bit, AdamW8bit

    shapes = ((128, 64), (64, 64, 3, 3))
    stock: Any = {8: AdamW8bit, 4: AdamW4bit}[bits]
    ours, _ = after(adamw(bits), parameters_of(shapes))
    # Their formula, not compiled: the compiler takes longer than all the rest.
    with torch.compiler.set_stance("force_eager"):
        theirs, _ = after(lambda p: stock(p, **ADAM), parameters_of(shapes))
    assert gap(ours, theirs, parameters_of(shapes)) < 0.02


def test_bfloat16_weights_stay_as_near_to_float32_as_torchaos() -> None:
    pytest.importorskip("torchao")
    from torchao.optim import AdamW8bit

    shapes, start = ((128, 64), (64, 64, 3, 3)), parameters_of(((128, 64), (64, 64, 3, 3)), torch.bfloat16)
    exact, _ = after(adamw(32), [nn.Parameter(p.detach().float()) for p in start])
    ours, _ = after(adamw(8), parameters_of(shapes, torch.bfloat16))
    with torch.compiler.set_stance("force_eager"):
        theirs, _ = after(
            lambda p: AdamW8bit(p, bf16_stochastic_round=True, **ADAM), parameters_of(shapes, torch.bfloat16)
        )
    assert gap(ours, exact, start) < 1.1 * gap(theirs, exact, start)


def test_adafactor_on_matrices_and_vectors_is_transformers() -> None:
    shapes = ((64, 64), (64,), (100, 50))
    ours, _ = after(adafactor, parameters_of(shapes))
    settings: dict[str, Any] = {"lr": 1e-3, "scale_parameter": False, "relative_step": False, "weight_decay": 0.01}
    theirs, _ = after(lambda p: StockAdafactor(p, **settings), parameters_of(shapes))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_adafactor_sees_a_convolution_as_the_matrix_it_is() -> None:
    kernel, matrix = ((32, 16, 3, 3),), ((32, 144),)
    ours, _ = after(adafactor, parameters_of(kernel))
    theirs, _ = after(adafactor, parameters_of(matrix))
    assert torch.equal(ours[0].flatten(1), theirs[0])


@pytest.mark.parametrize(("make", "most"), [(adamw(32), 0), (adamw(8), 0.05), (adafactor, 1e-5)])
def test_weights_in_another_memory_format_go_the_same_way(make: Make, most: float) -> None:
    """Blocks then hold other neighbours."""
    shapes = ((64, 32, 3, 3),)
    turned = [nn.Parameter(p.detach().to(memory_format=torch.channels_last)) for p in parameters_of(shapes)]
    ours, _ = after(make, turned)
    theirs, _ = after(make, parameters_of(shapes))
    assert turned[0].is_contiguous(memory_format=torch.channels_last)
    assert gap(ours, theirs, parameters_of(shapes)) <= most


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = ((96, 96), (32, 32, 3, 3), (64,))
    for make in (adamw(32), adamw(8), adamw(4)):
        whole, _ = after(make, parameters_of(shapes))
        monkeypatch.setattr("twostage.memory.adamw.CHUNK", 1024)
        parts, _ = after(make, parameters_of(shapes))
        monkeypatch.undo()
        assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))
    whole, _ = after(adafactor, parameters_of(shapes))
    monkeypatch.setattr("twostage.memory.adafactor.CHUNK", 1024)
    parts, _ = after(adafactor, parameters_of(shapes))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


# The state on the host


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adamw4bit", "adafactor"])
def test_where_the_state_waits_changes_no_bit_and_not_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch, optimizer: Any, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("twostage.memory.adamw.CHUNK", 1024)
    settings = {"optimizer": optimizer, "clip_updates": optimizer == "adamw"}  # Else torch's own on the card.
    card, one = after(built(Memory(**settings)), parameters_of(SHAPES, dtype))
    host, other = after(built(Memory(optimizer_state="host", **settings)), parameters_of(SHAPES, dtype))
    assert all(torch.equal(a, b) for a, b in zip(card, host, strict=True))
    saved, kept = (optimizer.state_dict()["state"] for optimizer in (one, other))
    for index, entries in saved.items():
        assert entries.keys() == kept[index].keys()
        for name, value in entries.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(kept[index][name]))


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adamw4bit", "adafactor"])
def test_between_steps_nothing_of_a_state_on_the_host_is_on_the_card(optimizer: Any) -> None:
    with simulation() as trace:
        parameter = nn.Parameter(torch.empty(1280, 1280, 3, 3))  # 14.7 million: 56 MiB for each float32 copy.
        moved = built(Memory(optimizer=optimizer, optimizer_state="host"))([parameter])
        parameter.grad = torch.empty_like(parameter)
        before = trace.current
        for _ in range(2):
            moved.step()
            assert trace.current - before < 1 << 18  # Tables of the quantisers.
            assert trace.peak - before <= 64 << 20
        assert trace.host == state_bytes(moved)


def test_adamw_on_the_host_goes_on_from_torchs_state_and_torchs_from_its() -> None:
    torchs = partial(torch.optim.AdamW, foreach=False, **ADAM)
    ours = built(Memory(optimizer_state="host"), weight_decay=ADAM["weight_decay"])
    for first, then in ((torchs, ours), (ours, torchs)):
        parameters = parameters_of(SHAPES)
        _, optimizer = after(first, parameters)
        copies = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
        other = then(copies)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for group in parameters, copies:
            for number, parameter in enumerate(group):
                parameter.grad = torch.full_like(parameter, 10.0**-number)
        optimizer.step()
        other.step()
        assert all(torch.equal(one, two) for one, two in zip(parameters, copies, strict=True))


def test_a_state_read_from_a_checkpoint_serves_weights_in_another_memory_format() -> None:
    turned = [nn.Parameter(p.detach().to(memory_format=torch.channels_last)) for p in parameters_of(((64, 32, 3, 3),))]
    make = built(Memory(optimizer_state="host"))
    _, optimizer = after(make, turned)
    resumed = make(turned)
    state = copy.deepcopy(optimizer.state_dict())
    for name in ("exp_avg", "exp_avg_sq"):
        state["state"][0][name] = state["state"][0][name].contiguous()
    resumed.load_state_dict(state)
    for moved in (optimizer, resumed):
        turned[0].grad = torch.ones_like(turned[0])
        moved.step()
    one, other = (moved.state[turned[0]]["exp_avg"] for moved in (optimizer, resumed))
    assert torch.equal(one, other)
    assert other.stride() == turned[0].stride()


# Learning


@pytest.mark.parametrize(
    ("memory", "dtype", "share"),
    [
        (Memory(), torch.float32, 0.002),
        (Memory(optimizer="adamw8bit"), torch.float32, 0.002),
        (Memory(optimizer="adamw4bit"), torch.float32, 0.03),
        (Memory(optimizer="adafactor"), torch.float32, 0.015),
        (Memory(), torch.bfloat16, 0.002),
        (Memory(optimizer="adamw8bit"), torch.bfloat16, 0.002),
        (Memory(optimizer="adafactor"), torch.bfloat16, 0.015),
    ],
)
def test_a_small_net_learns(memory: Memory, dtype: torch.dtype, share: float) -> None:
    """What is left of the loss after 300 steps."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 8))
    inputs = torch.randn(256, 32)
    targets = torch.sin(inputs @ torch.randn(32, 8) / 4)
    net.to(dtype)
    options = Stage2(steps=1, learning_rate=1e-3)
    optimizer = build_optimizer(dict(net.named_parameters()), options, Updates(memory, {}, (0, 2)))
    losses = []
    for _ in range(300):
        loss = (net(inputs.to(dtype)).float() - targets).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < share * losses[0]


# What they take


@pytest.mark.parametrize(
    ("make", "low", "high"),
    [(adamw(32), 8.0, 8.0), (adamw(8), 2.0, 2.04), (adamw(4), 1.0, 1.07), (adafactor, 0.0, 0.03)],
    ids=["32", "8", "4", "adafactor"],
)
def test_bytes_of_state_a_parameter(make: Make, low: float, high: float) -> None:
    _, optimizer = after(make, parameters_of(((320, 320, 3, 3), (640, 640))), steps=1)
    assert low <= state_bytes(optimizer) / (320 * 320 * 9 + 640 * 640) <= high


def test_small_tensors_keep_float32_moments() -> None:
    _, optimizer = after(adamw(8), parameters_of(((4095,), (4096,))), steps=1)
    small, large = optimizer.state.values()
    assert small["exp_avg"].dtype == torch.float32
    assert large["exp_avg"].dtype == torch.uint8


@pytest.mark.parametrize("make", [adamw(8), adamw(4), adafactor], ids=["8", "4", "adafactor"])
def test_a_step_of_a_large_tensor_needs_no_more_than_64_mib_beside_it(make: Make) -> None:
    (parameter,) = parameters_of(((1280, 1280, 3, 3),), torch.bfloat16)  # 14.7 million: 56 MiB for each float32 copy.
    optimizer = make([parameter])
    parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    trace = pytest.importorskip("twostage.memory.storages").StorageTrace()
    trace.watch([parameter, parameter.grad, *(v for v in optimizer.state[parameter].values() if torch.is_tensor(v))])
    before = trace.current
    with trace:
        optimizer.step()
    assert 8 << 20 < trace.peak - before <= 64 << 20


def test_without_options_it_is_torchs_own_fused_adamw() -> None:
    optimizer = build_optimizer({"w": nn.Parameter(torch.zeros(3))}, Stage2(steps=1, learning_rate=1e-3))
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["fused"]
