"""A rehearsal takes what a run takes, and no shipped recipe grows unnoticed."""

import json
from pathlib import Path

import pytest
from torch.utils._python_dispatch import _disable_current_modes

from twostage.errors import UserError
from twostage.families import Base, load_base
from twostage.memory import adafactor, adamw
from twostage.memory.ladder import climb
from twostage.memory.simulator import card_autocast, collected_on_demand
from twostage.memory.storages import StorageTrace
from twostage.planning.outlined import OutlinedBase, known_bases, outline_base
from twostage.planning.phases import Known
from twostage.planning.rehearsal import Rehearsal, rehearse
from twostage.planning.room import room
from twostage.processes import accelerators_aside
from twostage.recipe import Adapter, Memory, Prior
from twostage.recipe_file import load_recipe, shipped_recipes
from twostage.stages import learn_denoiser, learn_embedding

GIB = 1 << 30
BUDGET = Path(__file__).with_name("budget.json")


def _really(recipe):
    """What the same stages take on real tensors."""
    base = load_base(recipe.base)
    with accelerators_aside(), collected_on_demand(), card_autocast(), StorageTrace() as trace:

        class RealBase(OutlinedBase):
            """With its weights, which no operation makes; prompts are not read all the same."""

            def component(self, name):
                if name in self.family.tokenizers:
                    return super().component(name)
                with _disable_current_modes():  # A file is read on the host.
                    net = Base.component(self, name)
                trace.watch([*net.parameters(), *net.buffers()])
                return net

        real = RealBase(base.source, base.folder, base.family, base.resolution, base.reduction)
        session = Rehearsal(recipe, real, trace)
        prior = session.draw_class_images()
        if recipe.stage1:
            learn_embedding(session, session.recipe.stage1, real, session.subject)
        learn_denoiser(session, session.recipe.stage2, real, session.subject, prior)
        return session.found


def _phases(rehearsed):
    return {phase.name: phase for phase in rehearsed.phases if phase.name != "encode"}


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ({}, {}),
        ({"gradient_checkpointing": True, "ema_decay": 0.9}, {}),
        ({"train_text_encoder": True, "gradient_accumulation_steps": 3}, {}),
        ({"train": "adapter"}, {"adapter": Adapter(rank=2)}),
        ({}, {"prior": Prior(preserve=True, num_class_images=2)}),
        ({}, {"prior": Prior(preserve=True, source="photos", num_class_images=2)}),
        ({"max_grad_norm": 0.0}, {"memory": Memory(streamed=1, step_in_backward=True)}),
        ({}, {"memory": Memory(optimizer_state="host", activations="host")}),
        (
            {"max_grad_norm": 0.0, "gradient_checkpointing": True},
            {"memory": Memory(optimizer="adamw8bit", weights="bfloat16", step_in_backward=True)},
        ),
        ({}, {"memory": Memory(optimizer="adafactor", weights="bfloat16"), "mixed_precision": "bf16"}),
        ({"train": "adapter"}, {"adapter": Adapter(rank=2), "memory": Memory(frozen_base="4bit")}),
    ],
    ids=lambda value: "-".join(value) or "as-it-is",
)
def test_each_phase_takes_what_it_takes_with_real_tensors(tiny_recipe, stage, more):
    recipe = tiny_recipe.model_copy(update={"stage2": tiny_recipe.stage2.model_copy(update=stage), **more})
    simulated, real = rehearse(recipe), _really(recipe)
    assert _phases(simulated).keys() == _phases(real).keys()
    for name, phase in _phases(real).items():
        found = _phases(simulated)[name]
        assert found.allocated == pytest.approx(phase.allocated, rel=0.05), name
        assert found.work == phase.work, name
        assert found.host == phase.host, name
    assert simulated.saved == real.saved


# Of a study that simulated the same steps apart from this package: GiB allocated, and reserved by its own replay of the
# allocator, on Stable Diffusion 1.5 at 512 pixels, batches of one, nothing else on the card.
STUDY = {
    "float32 AdamW": ({}, 13.26, 13.76),
    "float32 AdamW, autocast, checkpointing": (
        {"mixed_precision": "bf16", "stage2.gradient_checkpointing": True},
        12.92,
        13.46,
    ),
    "LoRA, bfloat16": ({"mixed_precision": "bf16", "stage2.train": "adapter", "adapter.rank": 16}, 2.40, 2.44),
    "LoRA, bfloat16, checkpointing": (
        {
            "mixed_precision": "bf16",
            "stage2.train": "adapter",
            "adapter.rank": 16,
            "stage2.gradient_checkpointing": True,
        },
        1.85,
        1.88,
    ),
}


@pytest.mark.parametrize("configuration", STUDY)
def test_stable_diffusion_takes_what_an_independent_study_found(configuration):
    overrides, allocated, reserved = STUDY[configuration]
    alone = {"prior.preserve": False, "sample.per_prompt": 0, "stage2.batch_size": 1}
    rehearsed = rehearse(load_recipe("dreambooth", base="sd15", overrides=alone | overrides))
    stage = _phases(rehearsed)["stage 2"]
    assert stage.allocated / GIB == pytest.approx(allocated, rel=0.01)
    assert stage.reserved / GIB == pytest.approx(reserved, rel=0.03)


def test_with_state_and_activations_on_the_host_it_takes_what_the_study_found():
    alone = {"prior.preserve": False, "sample.per_prompt": 0, "stage2.batch_size": 1}
    small = {"memory.weights": "bfloat16", "memory.step_in_backward": True, "stage2.max_grad_norm": 0.0}
    waiting = {"memory.optimizer_state": "host", "memory.activations": "host", "stage2.gradient_checkpointing": True}
    rehearsed = rehearse(load_recipe("dreambooth", base="sd15", overrides=alone | small | waiting))
    stage = _phases(rehearsed)["stage 2"]
    assert stage.allocated / GIB == pytest.approx(1.70, rel=0.03)
    assert stage.host / GIB == pytest.approx(6.40 + 0.19, rel=0.03)  # float32 moments, inputs of checkpointed blocks.


@pytest.mark.parametrize("name", shipped_recipes())
def test_no_recipe_grows_beyond_its_memory_budget(name):
    """Bytes allocated on Stable Diffusion 1.5; `python benchmarks/memory_budget.py` writes them anew."""
    budget = json.loads(BUDGET.read_text(encoding="utf-8"))[name]
    recipe = load_recipe(name, base="sd15", overrides={"sample.per_prompt": 0})
    found = {phase.name: phase.allocated for phase in rehearse(recipe).phases if phase.unit == "step"}
    assert found.keys() == budget.keys()
    for stage, allocated in found.items():
        assert allocated <= 1.02 * budget[stage], stage


def test_what_waits_on_the_host_is_counted_there_and_not_on_the_card(tiny_recipe):
    phases, ram = {}, {}
    for where in ("card", "host"):
        memory = Memory(optimizer="adamw8bit", optimizer_state=where)
        rehearsed = rehearse(tiny_recipe.model_copy(update={"memory": memory}))
        phases[where] = _phases(rehearsed)
        ram[where] = room(tiny_recipe, rehearsed, 16).ram
    state = phases["host"]["stage 2, save"].host
    assert state == rehearsed.saved[-1].files[1] > 0
    assert phases["card"]["stage 2, save"].allocated - phases["host"]["stage 2, save"].allocated == state
    assert ram["host"] - ram["card"] >= state


def test_an_adapter_on_the_u_net_is_all_that_a_lora_stage_saves():
    (saved,) = rehearse(load_recipe("dreambooth-lora", overrides={"sample.per_prompt": 0})).saved
    assert 0 < saved.result == saved.files[0] < 5e6


def test_bases_known_by_name_have_their_published_sizes():
    sizes = {}
    for name in ("sd15", "sd21", "sdxl"):
        unet = outline_base(name).outline("unet")
        sizes[name] = round(sum(parameter.numel() for parameter in unet.parameters()) / 1e6, 1)
    assert sizes == {"sd15": 859.5, "sd21": 865.9, "sdxl": 2567.5}
    assert known_bases()["stable-diffusion-v1-5/stable-diffusion-v1-5"] == known_bases()["sd15"]


def test_a_base_that_is_neither_here_nor_known_is_named_with_those_that_are():
    with pytest.raises(UserError, match=r"'sdx1' is no folder.*did you mean sdxl"):
        outline_base("sdx1")


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw8bit", "adamw4bit", "adafactor"])
def test_equal_moves_are_followed_once_and_count_as_if_each_were(tiny_recipe, monkeypatch, optimizer, in_backward):
    memory = Memory(optimizer=optimizer, weights="bfloat16", step_in_backward=in_backward)
    stage2 = tiny_recipe.stage2.model_copy(update={"max_grad_norm": 0.0})
    recipe = tiny_recipe.model_copy(update={"memory": memory, "stage1": None, "stage2": stage2})
    for module in (adamw, adafactor):
        monkeypatch.setattr(module, "CHUNK", 1 << 12)
    once = rehearse(recipe)
    moves = []
    monkeypatch.setattr(StorageTrace, "once", lambda self, key, work, known: (moves.append(key), work())[1])
    assert rehearse(recipe) == once
    assert len(set(moves)) < len(moves) / 2


@pytest.mark.parametrize(
    ("name", "rungs"),
    [
        ("two-stage", ("step in the backward pass", "Adafactor", "all of the U-Net's blocks streamed")),
        ("dreambooth", ("the recipe as it is", "gradient checkpointing")),
        ("two-stage-lora", ("bfloat16", "8-bit AdamW")),
    ],
)
def test_what_rungs_have_in_common_is_found_once_and_equals_what_each_finds(name, rungs, tiny_base):
    sizes = {"prior.num_class_images": 2} if name == "dreambooth" else {}
    standings = climb(load_recipe(name, base=str(tiny_base), overrides=sizes))
    first, *others = [standing.recipe for standing in standings if standing.rung.name in rungs]
    assert len(others) == len(rungs) - 1
    known = Known()
    rehearse(first, known)
    for recipe in others:
        assert rehearse(recipe, known) == rehearse(recipe)
