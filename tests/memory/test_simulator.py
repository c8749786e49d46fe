"""What is followed, with values and without."""

import gc

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from twostage.memory.simulator import collected_on_demand, simulation, without_values
from twostage.memory.storages import StorageTrace


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
    )


def _step(unet, optimizer) -> None:
    out = unet(torch.empty(2, 4, 16, 16), torch.zeros(2, dtype=torch.int64), torch.empty(2, 7, 32), return_dict=False)[
        0
    ]
    out.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def _two_steps(unet, trace) -> None:
    optimizer = torch.optim.AdamW(unet.requires_grad_(True).parameters(), fused=True)
    _step(unet, optimizer)
    trace.begin()
    _step(unet, optimizer)


def _simulated(checkpointing: bool) -> StorageTrace:
    with torch.device("meta"):
        outline = _unet()
    with simulation() as trace:
        unet = without_values(outline)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        _two_steps(unet, trace)
        return trace


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_without_values_takes_what_a_real_one_takes(checkpointing):
    unet = _unet().eval()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    with StorageTrace() as real:
        real.watch(unet.parameters())
        _two_steps(unet, real)
    found = _simulated(checkpointing)
    assert found.peak == pytest.approx(real.peak, rel=1e-3)
    assert found.flops == real.flops


def test_its_peak_is_what_torchs_profiler_counts():
    unet = _unet().eval().requires_grad_(True)
    optimizer = torch.optim.AdamW(unet.parameters(), fused=True)
    _step(unet, optimizer)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        _step(unet, optimizer)
    events = profiled.profiler.kineto_results.events()
    taken = [
        event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()) if event.name() == "[memory]"
    ]
    rise = max(sum(taken[: end + 1]) for end in range(len(taken)))
    weights = sum(parameter.nbytes for parameter in unet.parameters())
    assert _simulated(False).peak == pytest.approx(3 * weights + rise, rel=0.05)  # Weights and AdamW's two moments.


def test_operations_are_those_of_torchs_own_counter():
    unet = _unet()
    inputs = torch.zeros(2, 4, 16, 16), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 7, 32)
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            unet(*inputs)
        with StorageTrace() as trace:
            unet(*inputs)
    assert trace.flops == counter.get_total_flops() > 0


def test_what_is_freed_is_forgotten_and_views_count_once():
    with simulation() as trace:
        held = torch.empty(1000)
        view = held.view(10, 100)[2:]
        assert trace.current == 4000
        del held
        assert trace.current == 4000
        del view
        assert trace.current == 0
        assert trace.peak == 4000


def test_autocast_normalizes_in_float32_as_on_a_card():
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8))
    with simulation(), torch.autocast("cpu", torch.bfloat16):
        without_values(net)
        picture = torch.empty(1, 8, 4, 4)
        assert net[0](picture).dtype == torch.bfloat16
        assert net(picture).dtype == torch.float32
    usual = nn.GroupNorm(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert usual(torch.zeros(1, 8, 4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16  # Nothing is left of it.


def test_a_net_is_converted_in_place():
    with torch.device("meta"):
        net = nn.Linear(100, 100, bias=False)
    with simulation() as trace:
        without_values(net)
        weight = net.weight
        net.to(torch.bfloat16)
        assert net.weight is weight
        assert trace.current == 20000


@pytest.mark.parametrize("frozen", [True, False])
def test_what_a_caller_keeps_from_the_collector_is_kept_from_it_afterwards_and_nothing_else_is(frozen):
    gc.freeze() if frozen else gc.unfreeze()
    with collected_on_demand():
        assert gc.get_freeze_count() > 0
    assert (gc.get_freeze_count() > 0) == frozen
