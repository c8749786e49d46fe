"""Streamed blocks compute what resident ones do, bit for bit, and are on the card only while they are used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from torch import Tensor

from twostage.families import load_base
from twostage.memory.optimizers import Updates
from twostage.memory.storages import StorageTrace
from twostage.memory.streaming import Streaming, streamed
from twostage.method.denoiser import DenoiserLearner, EncodedText, encode_prompts, keep_weights, open_for_training
from twostage.method.embedding import EmbeddingLearner
from twostage.method.examples import encode_photos
from twostage.method.loop import StageLoop
from twostage.method.prior import Preserving
from twostage.recipe import Adapter, Data, Memory, Stage1, Stage2, Token
from twostage.subject.captions import all_prompts
from twostage.subject.photos import find_photos
from twostage.subject.tokens import add_placeholder

CPU = torch.device("cpu")


@pytest.fixture
def make_loop(tiny_base: Path, photos: Path) -> Any:
    """Stage 2 on the tiny base, `share` of it streamed."""
    found, phrase = find_photos(photos), "red backpack"

    def make(share: float, memory: Memory, prior: Any = None, **options: Any) -> StageLoop:
        base = load_base(str(tiny_base))
        source: Any = encode_photos(base, found, Data(), phrase, 0, CPU)
        states = encode_prompts(base, all_prompts(found, Data(), phrase), str, CPU)
        settings = Stage2(**{"steps": 3, "learning_rate": 1e-3, "batch_size": 2, "max_grad_norm": 0, **options})
        keep_weights(base.denoiser, memory)
        open_for_training(base, "unet", settings, Adapter(rank=2, dropout=0.3, target_modules=("all",)))
        source = Preserving(source, prior(source)) if prior else source
        streaming = Streaming(base.denoiser, share, CPU) if share else None
        learner = DenoiserLearner(base, EncodedText(states))
        updates = Updates(memory, {}, (0, 2))
        return StageLoop(2, learner, source, settings, Accelerator(), updates=updates, streaming=streaming)

    return make


def everything(loop: StageLoop) -> dict[str, Tensor]:
    progress = loop.progress()
    return {name: tensor.clone() for name, tensor in (progress.trained | progress.optimizer).items()}


def assert_same(one: StageLoop, other: StageLoop) -> None:
    ours, theirs = everything(one), everything(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
        assert tensor.stride() == theirs[name].stride(), name


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "memory", [Memory(), Memory(optimizer="adafactor", weights="bfloat16")], ids=lambda memory: memory.weights
)
def test_a_streamed_u_net_learns_what_a_resident_one_does(
    make_loop: Any, share: float, checkpointing: bool, memory: Memory
) -> None:
    memory = memory.model_copy(update={"step_in_backward": True})
    resident, other = make_loop(0, memory), make_loop(share, memory, gradient_checkpointing=checkpointing)
    for one, two in zip(resident.steps(), other.steps(), strict=True):
        assert (one.loss, one.grad_norm) == (two.loss, two.grad_norm)
    assert_same(resident, other)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_on_a_streamed_base_learns_what_it_would_and_stays_on_the_card(
    make_loop: Any, checkpointing: bool
) -> None:
    options = {"train": "adapter", "gradient_accumulation_steps": 2, "max_grad_norm": 1.0, "ema_decay": 0.5}
    resident = make_loop(0, Memory(), **options)
    other = make_loop(1, Memory(), gradient_checkpointing=checkpointing, **options)
    assert all(bool(parameter.isfinite().all()) for parameter in other.trained.values())
    assert [step.loss for step in resident.steps()] == [step.loss for step in other.steps()]
    assert_same(resident, other)


class _Narrower:
    """Prior samples of another shape than the photos': the U-Net is asked twice in each step."""

    prompts: tuple[str, ...] = ()

    def __init__(self, source: Any) -> None:
        self._source = source

    def batch(self, *address: Any) -> Any:
        batch = self._source.batch(*address)
        return replace(batch, latents=batch.latents[..., :4], noise=batch.noise[..., :4])


def test_a_net_that_is_asked_twice_in_a_step_moves_once(make_loop: Any) -> None:
    memory = Memory(step_in_backward=True)
    resident, other = (make_loop(share, memory, _Narrower) for share in (0, 1))
    assert [step.loss for step in resident.steps()] == [step.loss for step in other.steps()]
    assert_same(resident, other)


def test_a_token_learns_through_a_streamed_u_net_what_it_would(tiny_base: Path, photos: Path) -> None:
    rows = []
    for share in (0, 0.5, 1):
        base = load_base(str(tiny_base))
        for parameter in base.denoiser.parameters():
            parameter.data = parameter.data.clone()  # Where a file is mapped to, products may be rounded otherwise.
        placeholder = add_placeholder(base.tokenizer, base.text_encoder, Token(initializer="red"))
        source = encode_photos(base, find_photos(photos), Data(), "<rare> backpack", 0, CPU)
        settings = Stage1(steps=3, learning_rate=1e-2, batch_size=2)
        streaming = Streaming(base.denoiser, share, CPU) if share else None
        learner = EmbeddingLearner(base, placeholder)
        loop = StageLoop(1, learner, source, settings, Accelerator(), streaming=streaming)
        list(loop.steps())
        rows.append(learner.rows.detach())
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])


@pytest.mark.parametrize("broken_off", [1, 2])
def test_a_restored_loop_goes_on_bit_for_bit(make_loop: Any, broken_off: int) -> None:
    memory = Memory(optimizer="adamw8bit", step_in_backward=True)
    unbroken, broken, resumed = (make_loop(share, memory) for share in (0, 1, 0.5))
    list(unbroken.steps())
    running = broken.steps()
    for _ in range(broken_off):
        next(running)
    resumed.restore(broken.progress())
    list(resumed.steps())
    assert_same(unbroken, resumed)


def unet() -> UNet2DConditionModel:
    """Of blocks of all kinds."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
        cross_attention_dim=32,
        attention_head_dim=4,
    ).eval()


def ask(net: UNet2DConditionModel) -> Tensor:
    asked = torch.ones(1, 4, 16, 16), torch.tensor([5]), torch.ones(1, 7, 32)
    answer: Tensor = net(*asked, return_dict=False)[0]
    return answer


def matrices(net: UNet2DConditionModel) -> int:
    """Bytes of what is streamed where everything is."""
    inner = [p for name, p in net.named_parameters() if ".resnets." in name or ".transformer_blocks." in name]
    inner += [p for name, p in net.named_parameters() if "samplers." in name]
    return sum(parameter.nbytes for parameter in inner if parameter.ndim > 1)


@pytest.mark.parametrize("trains", [False, True])
def test_nothing_that_is_streamed_is_on_the_card_between_steps_and_little_within(trains: bool) -> None:
    net = unet().requires_grad_(trains)
    net.conv_in.requires_grad_(True)
    size, largest = matrices(net), max(_matrices_of(block) for block in _blocks(net))
    with StorageTrace() as trace:
        trace.watch(net.parameters())
        before = trace.current
        streaming = Streaming(net, 1, CPU)
        assert trace.host == size
        away = trace.current
        assert away < before - 0.99 * size
        for _ in range(2):
            trace.begin()
            ask(net).sum().backward()
            streaming.rest()
            net.zero_grad()
            assert trace.current == away
        with torch.no_grad():
            trace.begin()
            ask(net)
            assert trace.current == away  # Whoever only asks need not say that it is over.
            assert trace.peak < away + 2 * largest + (1 << 20)
        assert trace.host_peak == size


def _blocks(net: UNet2DConditionModel) -> list[Any]:
    kinds = {"ResnetBlock2D", "BasicTransformerBlock", "Downsample2D", "Upsample2D"}
    return [module for module in net.modules() if type(module).__name__ in kinds]


def _matrices_of(block: Any) -> int:
    return sum(parameter.nbytes for parameter in block.parameters() if parameter.ndim > 1)


def test_weights_that_are_away_cannot_be_mistaken_for_weights() -> None:
    net = unet()
    expected = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    streaming = Streaming(net, 1, CPU)
    weight = net.mid_block.resnets[0].conv1.weight
    assert weight.shape == expected["mid_block.resnets.0.conv1.weight"].shape
    assert bool(weight.isnan().all())
    with streaming.whole():
        assert all(torch.equal(tensor, expected[name]) for name, tensor in net.state_dict().items())
        weight.data.fill_(2.0)
    assert bool(weight.isnan().all())
    streaming.end()
    assert bool((weight == 2).all())


def test_half_is_half_of_the_weights_and_lies_evenly_among_the_rest() -> None:
    net = unet()
    Streaming(net, 0.5, CPU)
    so_far = away = 0
    largest = max(_matrices_of(block) for block in _blocks(net))
    for block in _blocks(net):
        so_far += _matrices_of(block)
        away += _matrices_of(block) * bool(next(p for p in block.parameters() if p.ndim > 1).isnan().any())
        assert abs(away - so_far / 2) < 0.51 * largest  # To whatever block one counts.


def test_a_net_is_its_own_again_once_it_is_streamed_no_more() -> None:
    net = unet()
    before, names = ask(net), set(vars(net.mid_block.resnets[0]))
    with streamed(net, 1, CPU):
        assert torch.equal(ask(net), before)
    assert torch.equal(ask(net), before)
    assert set(vars(net.mid_block.resnets[0])) == names
