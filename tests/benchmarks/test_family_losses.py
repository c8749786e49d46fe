"""The comparison of losses, on a script of a few lines that does what diffusers' do; those need a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.family_losses.cases import CASES, PROMPT, Case
from benchmarks.family_losses.comparison import compare
from benchmarks.family_losses.ours import our_step
from benchmarks.family_losses.peer import RECORDER, Recording, read_recording

SCRIPT = """
import sys, torch, torchvision
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
base, prompt, batch = sys.argv[1:]
tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
encoder = CLIPTextModel.from_pretrained(base, subfolder="text_encoder")
unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
noise_scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
def main(accelerator=Accelerator()):
    model_input, noise = torch.randn(2, int(batch), 4, 8, 8)
    timesteps = torch.randint(0, 1000, (int(batch),))
    with torch.no_grad():
        states = encoder(tokenizer([prompt], padding="max_length", return_tensors="pt").input_ids)[0]
        unet(noise, timesteps, states.repeat(int(batch), 1, 1))  # as if a class picture were drawn
    noisy = noise_scheduler.add_noise(model_input, noise, timesteps)
    answer = unet(noisy, timesteps, states.repeat(int(batch), 1, 1), return_dict=False)[0]
    accelerator.backward(torch.nn.functional.mse_loss(answer, noise))
main()
"""


@pytest.fixture(scope="module")
def case() -> Case:
    return next(case for case in CASES if case.base == "sd15")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, case: Case) -> Recording:
    folder = tmp_path_factory.mktemp("script")
    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    output = folder / "recording.safetensors"
    command = [sys.executable, RECORDER, output, folder / "script.py", tiny_base, PROMPT, str(case.batch)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return read_recording(output)


def test_a_step_of_ours_on_a_scripts_tensors_agrees_with_it(recording: Recording, tiny_base: Path, case: Case) -> None:
    found = compare(recording.tensors, our_step(case, tiny_base, recording.tensors))
    assert found.agree, found
    assert recording.versions["torch"] == torch.__version__


def test_what_is_otherwise_is_said(recording: Recording, tiny_base: Path, case: Case) -> None:
    ours = our_step(case, tiny_base, recording.tensors)
    assert not compare(recording.tensors, ours | {"loss": ours["loss"] * (1 + 1e-5)}).agree
    later = compare(recording.tensors, ours | {"given.timestep": ours["given.timestep"] + 1})
    more = compare(recording.tensors, ours | {"given.class_labels": ours["given.timestep"]})
    fewer = compare(recording.tensors | {"given.class_labels": ours["given.timestep"]}, ours)
    assert [("timestep" in words, "class_labels" in words) for one in (later, more, fewer) for words in one.unlike] == [
        (True, False),
        (False, True),
        (False, True),
    ]
    assert not any(one.agree for one in (later, more, fewer))
    weight = next(name for name in ours if name.startswith("gradient."))
    assert not compare(recording.tensors, ours | {weight: -ours[weight]}).agree


def test_a_script_that_makes_no_step_is_named(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("print('nothing')\n", encoding="utf-8")
    command = [sys.executable, RECORDER, tmp_path / "recording", tmp_path / "script.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"{tmp_path / 'script.py'} ended without a step"
    assert not (tmp_path / "recording").exists()
