"""channels_last and compiled blocks train what is trained without, and a compiler that fails stops nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
import torch._inductor.config as inductor
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from tests.watching import Watcher, assert_same_bits, ctrl_c, metrics
from twostage import run
from twostage.display import Display
from twostage.families import load_base
from twostage.method.kernels import compile_blocks, interpreted, lay_out
from twostage.recipe import Memory, Recipe, Speed
from twostage.recipe_file import load_recipe

GRAPHS = Speed(compile="graphs")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class _Net(nn.Module):
    """One block of a U-Net."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = ResnetBlock2D(in_channels=8, out_channels=8, temb_channels=None, groups=4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.block(inputs, None)
        return outputs


def _gradients(net: nn.Module) -> tuple[torch.Tensor, ...]:
    inputs = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.autograd.grad(net(inputs).square().mean(), list(net.parameters()))


@contextmanager
def without_compiler() -> Iterator[None]:
    """As on a machine whose compiler is broken, and that has compiled nothing before."""
    torch._dynamo.reset()
    changes = {"cpp.cxx": ("/bin/false",), "force_disable_caches": True, "compile_threads": 1}
    with inductor.patch(changes):
        yield


def test_channels_last_reaches_the_convolutions_and_changes_no_value(tiny_base: Path) -> None:
    unet, plain = load_base(str(tiny_base)).denoiser, load_base(str(tiny_base)).denoiser
    lay_out(unet, Speed(channels_last=True))
    weight = unet.down_blocks[0].resnets[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(unet.state_dict()[name], tensor)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_a_run_in_channels_last_resumes_bit_for_bit_and_trains_what_a_plain_one_does(
    optimizer: str, finished: Path, tmp_path: Path
) -> None:
    memory = Memory.model_validate({"optimizer": optimizer})
    recipe = load_recipe(str(finished / "recipe.toml"))
    recipe = recipe.model_copy(update={"speed": Speed(channels_last=True), "memory": memory})
    unbroken = run.train(recipe, tmp_path / "unbroken", display=Display())
    with pytest.raises(KeyboardInterrupt):
        run.train(recipe, tmp_path / "run", display=Watcher(("stage 2", 3), ctrl_c))
    resumed = run.train(recipe, tmp_path / "run", resume=True, display=Display())
    assert_same_bits(resumed, unbroken)
    if optimizer == "adamw":
        losses = [[step["loss"] for step in metrics(folder)] for folder in (unbroken, finished)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert isinstance(run.load_pipeline(unbroken).unet, UNet2DConditionModel)


def test_compiled_blocks_have_the_gradients_of_plain_ones() -> None:
    net, plain = _Net(), _Net()
    assert compile_blocks(net, partial(_gradients, net), graphs=False, fixed=True) == ""
    assert net.block._compiled_call_impl is not None
    for one, other in zip(_gradients(net), _gradients(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_compiler_that_fails_is_told_of_in_one_line_and_done_without() -> None:
    net, plain = _Net(), _Net()
    with without_compiler():
        told = compile_blocks(net, partial(_gradients, net), graphs=False, fixed=True)
    assert told.startswith("going on without speed.compile") and "\n" not in told
    for one, other in zip(_gradients(net), _gradients(plain), strict=True):
        assert torch.equal(one, other)


def test_a_lack_of_memory_is_not_taken_for_a_compiler_that_fails() -> None:
    def attempt() -> None:
        raise RuntimeError("std::bad_alloc")

    with pytest.raises(RuntimeError, match="bad_alloc"):
        compile_blocks(_Net(), attempt, graphs=False, fixed=True)


def test_a_run_goes_on_without_a_compiler_and_without_cuda_graphs_on_a_cpu_and_says_so(
    finished: Path, tmp_path: Path
) -> None:
    """Bit for bit as if nobody had asked."""
    if torch.cuda.is_available():
        pytest.skip("there is one")
    recipe, watcher = load_recipe(str(finished / "recipe.toml")), Watcher()
    with without_compiler():
        plain = run.train(recipe.model_copy(update={"speed": GRAPHS}), tmp_path / "run", display=watcher)
    for said in ("without CUDA graphs", "without speed.compile"):
        assert len([line for line in watcher.said if said in line]) == 2  # Once a stage.
    assert_same_bits(plain, finished)


def test_what_is_compiled_is_left_aside_within_and_back_afterwards(tiny_base: Path) -> None:
    unet = load_base(str(tiny_base)).denoiser
    block = unet.down_blocks[0].resnets[0]
    block.compile()
    call = block._compiled_call_impl
    with interpreted(unet):
        assert block._compiled_call_impl is None
    assert block._compiled_call_impl is call
    assert unet.state_dict().keys() == load_base(str(tiny_base)).denoiser.state_dict().keys()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory": {"streamed": 0.5, "step_in_backward": True}}, "memory.streamed = 0.5"),
        ({"memory": {"frozen_base": "8bit"}}, "memory.frozen_base = '8bit'"),
        ({"memory": {"activations": "host"}}, "memory.activations = 'host'"),
        ({"data": {"fit": "bucket"}}, "data.fit = 'bucket'"),
        ({"memory": {"step_in_backward": True}}, "memory.step_in_backward"),
        ({"stage2": {"gradient_checkpointing": True}}, "stage2.gradient_checkpointing"),
        ({"stage1": {"gradient_accumulation_steps": 2}}, "stage1.gradient_accumulation_steps = 2"),
    ],
)
def test_what_does_not_go_with_graphs_is_refused_in_one_line(options: dict[str, dict[str, object]], said: str) -> None:
    stage = {"steps": 1, "learning_rate": 1e-3}
    given = {
        "speed": {"compile": "graphs"},
        "memory": options.get("memory", {}),
        "data": options.get("data", {}),
        "stage1": stage | options.get("stage1", {}),
        "stage2": stage | {"max_grad_norm": 0.0} | options.get("stage2", {}),
    }
    with pytest.raises(ValueError, match="speed.compile = 'graphs'") as error:
        Recipe.model_validate(given)
    assert said in str(error.value)
