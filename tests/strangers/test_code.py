"""No code that comes with a model is run, and no module, model or kernel that its settings name is loaded."""

from __future__ import annotations

import builtins
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from tests.strangers.conftest import change_json, refuse
from twostage.evaluation.embedders import CLIPEmbedder, ViTEmbedder
from twostage.evaluation.encoders import load_encoders
from twostage.families import load_base, load_part
from twostage.method.adapter import merge_adapter
from twostage.method.sampling import assemble
from twostage.pocket import pocket_folder
from twostage.run import load_pipeline


@pytest.fixture
def evil(canary: Path) -> str:
    """Code that makes the canary as soon as it is imported, and then is a scheduler and a model."""
    return (
        f"from pathlib import Path\nPath({str(canary)!r}).touch()\n"
        "from diffusers import DDIMScheduler as Evil\n"
        "from transformers import ViTConfig as EvilConfig, ViTModel as EvilModel, CLIPTokenizer as EvilTokenizer\n"
        "from transformers import ViTImageProcessor as EvilProcessor\n"
    )


@pytest.fixture
def agreed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is asked whether code may run says yes."""
    monkeypatch.setattr(builtins, "input", lambda *words: "y")


def test_the_code_would_run_where_it_is_trusted(own_base: Path, evil: str, canary: Path) -> None:
    (own_base / "scheduler" / "evil.py").write_text(evil)
    change_json(own_base / "model_index.json", scheduler=["evil", "Evil"])
    StableDiffusionPipeline.from_pretrained(own_base, trust_remote_code=True)
    assert canary.exists()


@pytest.mark.parametrize("library", ["evil", "diffusers"])
def test_a_part_with_code_of_its_own_is_refused(library: str, own_base: Path, evil: str, canary: Path) -> None:
    """Under the name of a library, too: older diffusers look for that file first, and ask nobody."""
    (own_base / "scheduler" / f"{library}.py").write_text(evil)
    change_json(own_base / "model_index.json", scheduler=[library, "Evil"])
    refuse(lambda: assemble(load_base(str(own_base))), "scheduler", "no code")
    change_json(own_base / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    refuse(lambda: assemble(load_base(str(own_base))), f"{library}.py", "no code")
    assert not canary.exists()


def test_a_pipeline_with_code_of_its_own_is_refused(own_base: Path, evil: str, canary: Path) -> None:
    (own_base / "pipeline.py").write_text(evil)
    change_json(own_base / "model_index.json", _class_name=["pipeline", "Evil"])
    refuse(lambda: load_base(str(own_base)), "pipeline", "which no family reads")
    assert not canary.exists()


def test_a_module_that_an_index_names_is_not_imported(
    own_base: Path, evil: str, canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lying_here.py").write_text(evil)
    monkeypatch.syspath_prepend(tmp_path)
    change_json(own_base / "model_index.json", scheduler=["lying_here", "Evil"])
    refuse(lambda: load_base(str(own_base)), "lying_here")
    assert not canary.exists() and "lying_here" not in sys.modules


def test_a_scheduler_that_is_a_pipeline_with_parts_of_its_own_is_refused(own_base: Path) -> None:
    change_json(own_base / "model_index.json", scheduler=["diffusers", "StableDiffusionPipeline"])
    refuse(lambda: load_base(str(own_base)), "scheduler", "StableDiffusionPipeline")


@pytest.mark.usefixtures("agreed")
@pytest.mark.parametrize("kind", [ViTEmbedder, CLIPEmbedder])
def test_an_encoder_with_code_of_its_own_is_refused_and_nobody_is_asked(
    kind: type, evil: str, canary: Path, tmp_path: Path
) -> None:
    role = "dino" if kind is ViTEmbedder else "clip"
    folder = Path(shutil.copytree(pocket_folder("vit" if role == "dino" else "clip"), tmp_path / "theirs"))
    (folder / "evil.py").write_text(evil)
    load_encoders((f"{role}={folder}",), pocket=True)  # The file alone does no harm.
    settings = {
        "config.json": {
            "model_type": "evil",
            "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"},
        },
        "preprocessor_config.json": {
            "image_processor_type": "EvilProcessor",
            "auto_map": {"AutoImageProcessor": "evil.EvilProcessor"},
        },
        "tokenizer_config.json": {
            "tokenizer_class": "EvilTokenizer",
            "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]},
        },
    }
    for name, changes in settings.items():
        if (folder / name).exists():
            before = (folder / name).read_text()
            change_json(folder / name, **changes)
            refuse(lambda: load_encoders((f"{role}={folder}",), pocket=True), name, "auto_map")
            (folder / name).write_text(before)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("unet/config.json", {"auto_map": {"AutoModel": "evil.Evil"}}),
        ("unet/config.json", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}),
        ("text_encoder/config.json", {"attn_implementation": "somebody/kernel"}),
        ("text_encoder/config.json", {"_attn_implementation": "flash_attention_2"}),
        ("text_encoder/config.json", {"backbone": "somebody/model"}),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}),
        ("tokenizer/tokenizer_config.json", {"vocab_file": "../../elsewhere.json"}),
        ("scheduler/scheduler_config.json", {"auto_map": {"AutoScheduler": "evil.Evil"}}),
    ],
)
def test_settings_that_name_code_or_another_model_are_refused(
    name: str, changes: dict[str, object], own_base: Path
) -> None:
    change_json(own_base / name, **changes)
    refuse(lambda: load_base(str(own_base)), Path(name).name, next(iter(changes)))
    component = name.split("/")[0]
    if component != "scheduler":
        refuse(lambda: load_part(load_base("pocket").family, own_base, component), Path(name).name)


def test_settings_as_they_are_published_are_read(own_base: Path) -> None:
    change_json(own_base / "tokenizer" / "tokenizer_config.json", special_tokens_map_file="./special_tokens_map.json")
    change_json(own_base / "text_encoder" / "config.json", _attn_implementation="sdpa", quantization_config=None)
    change_json(
        own_base / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=[None, None],
        requires_safety_checker=True,
    )
    assemble(load_base(str(own_base)))


def test_an_adapter_in_a_base_that_stands_for_another_model_is_refused(own_base: Path) -> None:
    change_json(
        own_base / "text_encoder" / "adapter_config.json", peft_type="LORA", base_model_name_or_path="somebody/model"
    )
    refuse(lambda: load_base(str(own_base)), "adapter_config.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "lying_here"},
        {"megatron_core": "lying_here"},
        {"auto_mapping": {"base_model_class": "Evil", "parent_library": "lying_here"}},
        {"init_lora_weights": "pissa"},
        {"target_modules": "(a+)+$"},
        {"peft_type": "PREFIX_TUNING"},
    ],
)
def test_an_adapter_that_asks_for_more_than_an_adapter_is_refused(
    changes: dict[str, object],
    lora_run: Path,
    evil: str,
    canary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "lying_here.py").write_text(evil)
    monkeypatch.syspath_prepend(tmp_path)
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    change_json(run / "adapter" / "unet" / "adapter_config.json", **changes)
    refuse(lambda: load_pipeline(run), "adapter_config.json")
    assert not canary.exists() and "lying_here" not in sys.modules


def test_an_adapter_of_another_version_of_peft_is_read(lora_run: Path, tmp_path: Path) -> None:
    """Whose switches and numbers may have other defaults, and which knows more of them."""
    folder = Path(shutil.copytree(lora_run / "adapter" / "unet", tmp_path / "adapter"))
    change_json(
        folder / "adapter_config.json", peft_version="0.15.0", lora_bias=False, of_tomorrow="none", use_qalora=False
    )
    base = load_base(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
    assert isinstance(merge_adapter(base.denoiser, folder), torch.nn.Module)
