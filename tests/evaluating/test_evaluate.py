"""What `evaluate` promises of a run: every choice written down, nothing drawn twice, the base on the same seeds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks.random_sd15 import SIZES, write_pipeline
from tests.watching import Alive
from twostage import evaluating, run
from twostage.display import Display
from twostage.errors import UserError
from twostage.evaluating import evaluate, evaluate_result, open_pipeline, series
from twostage.evaluation import encoders
from twostage.evaluation.embedders import ViTEmbedder
from twostage.pocket import pocket_folder
from twostage.recipe_evaluation import Evaluation, Foreign

OPTIONS = Evaluation(
    suite="pocket",
    num_prompts=2,
    images_per_prompt=2,
    num_class_images=3,
    num_unrelated_images=2,
    num_inference_steps=2,
    encoders=("dino=pocket", "clip=pocket", "dinov2=none"),
)


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    """A finished run that a test may write to."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def unseen(tmp_path: Path) -> Path:
    """Photos of the subject that no run has seen."""
    folder = tmp_path / "unseen"
    folder.mkdir()
    for index, colour in enumerate(("crimson", "teal")):
        Image.new("RGB", (32, 32), colour).save(folder / f"{index}.png")
    return folder


def _stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*.png"))}


def test_every_choice_is_written_beside_the_figures(own: Path, unseen: Path) -> None:
    returned = evaluate(own, OPTIONS, held_out=[unseen], display=Display())
    record = json.loads((own / "evaluation.json").read_text(encoding="utf-8"))
    assert record == json.loads(json.dumps(returned))
    choices = record["choices"]
    assert choices["suite"] == "pocket" and len(choices["prompts"]) == 2
    assert choices["num_inference_steps"] == 2 and choices["guidance_scale"] == 7.5
    assert choices["class_prompt"] == "a photo of a backpack" and len(choices["unrelated_prompts"]) == 2
    assert choices["encoders"]["dino"]["model"] == "ViTModel" and len(choices["encoders"]["clip"]["sha256"]) == 64
    assert choices["scheduler"].endswith("Scheduler") and choices["resolution"] == 16
    assert (
        record["result"]["held_out"] == [str(path) for path in sorted(unseen.iterdir())]
        and len(record["result"]["photos"]) == 4
    )
    for name in ("dino_seen", "dino_unseen", "clip_i_seen", "clip_t", "pres", "drift_class", "drift_unrelated", "kid"):
        figure = record["figures"][name]
        low, high = figure["range"]
        assert (low is None or low <= figure["value"]) and (high is None or figure["value"] <= high)
    assert record["left_out"]["dinov2_seen"]
    assert len(record["figures"]["dino_unseen"]["values"]) == 2
    assert record["figures"]["dino_unseen"]["prompts"][0].startswith("a photo of a <rare> backpack ")
    assert all((own / name).is_file() for names in record["pictures"].values() for name in names)


def test_pictures_are_those_that_generate_draws(own: Path) -> None:
    record = evaluate(own, OPTIONS, display=Display())
    template = record["choices"]["prompts"][0]
    drawn = run.generate(own, template, count=2, seed=0, num_inference_steps=2, display=Display())
    with Image.open(own / record["pictures"]["subject"][1]) as second:
        # They were drawn beside others, and a larger batch may round otherwise.
        difference = torch.tensor(list(second.tobytes())).int() - torch.tensor(list(drawn[1].tobytes())).int()
    assert difference.abs().max() <= 1


def test_identity_is_the_mean_cosine_of_pictures_and_photos(own: Path, unseen: Path) -> None:
    record = evaluate(own, OPTIONS, held_out=[unseen], display=Display())
    encoder = ViTEmbedder(pocket_folder("vit"))
    drawn = encoder.images([Image.open(own / name).convert("RGB") for name in record["pictures"]["subject"]])
    photos = encoder.images([Image.open(path).convert("RGB") for path in sorted(unseen.iterdir())])
    assert record["figures"]["dino_unseen"]["value"] == pytest.approx(float((drawn @ photos.T).mean()), abs=1e-5)


def test_no_more_pictures_are_in_memory_however_many_prompts_and_photos(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters: list[Alive] = []

    def watch(module: ModuleType, name: str) -> None:
        real = getattr(module, name)

        def counted(*asked: Any, **more: Any) -> Any:
            made = real(*asked, **more)
            counters[-1].see(*(made if isinstance(made, list) else [made] if made else []))
            return made

        monkeypatch.setattr(module, name, counted)

    for module, name in ((series, "draw"), (series, "read_drawn"), (evaluating, "open_photo")):
        watch(module, name)
    monkeypatch.setattr(encoders, "BATCH", 4)
    for count in (17, 34):
        suite, unseen = tmp_path / f"{count}.txt", tmp_path / f"unseen-{count}"
        suite.write_text("\n".join(f"a photo of a {{}} number {number}" for number in range(count)))
        unseen.mkdir()
        for index in range(count):
            Image.new("RGB", (32, 32), (index, 90, 90)).save(unseen / f"{index}.png")
        counters.append(Alive())
        options = OPTIONS.model_copy(update={"suite": str(suite), "num_prompts": None, "images_per_prompt": 1})
        record = evaluate(own, options, held_out=[unseen], display=Display())
        assert len(record["figures"]["dino_unseen"]["values"]) == count
    assert 0 < counters[1].most <= counters[0].most < 20


def test_evaluating_twice_draws_nothing_and_says_the_same(own: Path, cache: Path) -> None:
    first = evaluate(own, OPTIONS, display=Display())
    before = _stamps(own) | _stamps(cache)
    assert evaluate(own, OPTIONS, display=Display()) == first
    assert _stamps(own) | _stamps(cache) == before


def test_what_a_kill_left_undrawn_is_drawn_with_the_same_bits(own: Path) -> None:
    first = evaluate(own, OPTIONS, display=Display())
    pictures = [own / name for names in first["pictures"].values() for name in names]
    whole = [path.read_bytes() for path in pictures]
    pictures[1].unlink()
    pictures[-1].write_bytes(whole[-1][:40])
    (own / "evaluation.json").unlink()
    assert evaluate(own, OPTIONS, display=Display()) == first
    assert [path.read_bytes() for path in pictures] == whole


def test_other_choices_draw_other_pictures(own: Path) -> None:
    evaluate(own, OPTIONS, display=Display())
    before = (own / "evaluation" / "subject" / "0000.png").read_bytes()
    evaluate(own, OPTIONS.model_copy(update={"seed": 7}), display=Display())
    assert (own / "evaluation" / "subject" / "0000.png").read_bytes() != before


def test_two_runs_of_a_class_share_the_pictures_of_the_base(own: Path, tmp_path: Path, cache: Path) -> None:
    evaluate(own, OPTIONS, display=Display())
    before = _stamps(cache)
    other = Path(shutil.copytree(own, tmp_path / "other"))
    shutil.rmtree(other / "evaluation")
    evaluate(other, OPTIONS, display=Display())
    assert _stamps(cache) == before


def test_the_base_drifts_nowhere_from_itself(own: Path) -> None:
    record = evaluate(own, OPTIONS, display=Display())
    assert record["base"]["drift_class"]["value"] == pytest.approx(0, abs=1e-6)
    assert record["base"]["dpres"]["value"] == pytest.approx(0, abs=1e-6)
    assert record["figures"]["drift_class"]["value"] > 1e-4


def test_at_strength_0_nothing_has_drifted_and_at_1_it_is_the_result(own: Path) -> None:
    record = evaluate(own, OPTIONS.model_copy(update={"strengths": (0.0, 0.5, 1.0)}), display=Display())
    none, half, full = record["curve"]["strength"]
    assert [point["at"] for point in (none, half, full)] == [0, 0.5, 1]
    assert none["figures"]["drift_class"]["value"] == pytest.approx(0, abs=1e-6)
    assert full["figures"] == record["figures"]
    assert half["figures"]["drift_class"]["value"] > 0


def test_without_held_out_photos_the_figures_that_need_them_are_named(own: Path) -> None:
    record = evaluate(own, OPTIONS, display=Display())
    assert "dino_unseen" not in record["figures"] and "--held-out" in record["left_out"]["dino_unseen"]
    assert "overfit_gap" not in record["figures"] and "dino_seen" in record["figures"]


def test_a_missing_encoder_leaves_out_its_figures_alone(own: Path) -> None:
    record = evaluate(own, OPTIONS.model_copy(update={"encoders": ("dino=pocket", "clip=none")}), display=Display())
    assert "dino_seen" in record["figures"] and "clip_t" not in record["figures"]
    assert "dinov2" in record["left_out"]["dinov2 encoder"]


def test_a_result_of_no_numbers_is_refused_in_one_line(own: Path) -> None:
    weights = next((own / "unet").glob("*.safetensors"))
    broken = {name: torch.full_like(tensor, float("nan")) for name, tensor in load_file(weights).items()}
    save_file(broken, weights, {"format": "pt"})
    with pytest.raises(UserError, match="black pictures") as told:
        evaluate(own, OPTIONS, display=Display())
    assert "\n" not in str(told.value) and not (own / "evaluation.json").exists()


def test_a_run_whose_photos_are_gone_is_evaluated_without_them(own: Path, tmp_path: Path) -> None:
    recipe = own / "recipe.toml"
    lines = recipe.read_text(encoding="utf-8").splitlines()
    gone = [f'photos = "{tmp_path / "gone"}"' if line.startswith("photos = ") else line for line in lines]
    recipe.write_text("\n".join(gone), encoding="utf-8")
    record = evaluate(own, OPTIONS, display=Display())
    assert "dino_seen" not in record["figures"] and "drift_class" in record["figures"]


def test_an_unfinished_run_is_refused(own: Path) -> None:
    facts = json.loads((own / "run.json").read_text(encoding="utf-8"))
    (own / "run.json").write_text(json.dumps(facts | {"finished": False}), encoding="utf-8")
    with pytest.raises(UserError, match="--resume"):
        evaluate(own, OPTIONS, display=Display())


def test_what_cannot_be_mixed_with_its_base_is_refused_before_anything_is_drawn(
    tiny_base: Path, tmp_path: Path
) -> None:
    result = open_pipeline(Foreign(pipeline=str(tiny_base), token="sks", class_noun="backpack"))
    with pytest.raises(UserError, match="strength 0.5"):
        evaluate_result(result, tmp_path / "out", OPTIONS.model_copy(update={"strengths": (0.5,)}), Display())
    assert not (tmp_path / "out").exists()


def test_of_one_photo_and_none_held_out_the_figures_left_out_are_named(
    tiny_base: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(next(photos.glob("*.png")), tmp_path / "one")
    asked = Foreign(
        pipeline=str(tiny_base), token="sks", class_noun="backpack", photos=tmp_path / "one", base=str(tiny_base)
    )
    record = evaluate_result(open_pipeline(asked), tmp_path / "out", OPTIONS, Display())
    assert {"dino_unseen", "clip_i_unseen", "overfit_gap"} <= record["left_out"].keys()
    assert "dino_seen" in record["figures"] and "dino_seen" not in record["real"]


def test_a_run_trained_anew_into_its_folder_is_drawn_anew(own: Path) -> None:
    evaluate(own, OPTIONS, display=Display())
    before = (own / "evaluation" / "subject" / "0000.png").read_bytes()
    weights = next((own / "unet").glob("*.safetensors"))
    save_file({name: tensor * 0.9 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    evaluate(own, OPTIONS, display=Display())
    assert (own / "evaluation" / "subject" / "0000.png").read_bytes() != before


def test_figures_go_where_their_pictures_go(own: Path) -> None:
    evaluate(own, OPTIONS, display=Display())
    weights = next((own / "unet").glob("*.safetensors"))
    broken = {name: torch.full_like(tensor, float("nan")) for name, tensor in load_file(weights).items()}
    save_file(broken, weights, {"format": "pt"})
    with pytest.raises(UserError, match="black pictures"):
        evaluate(own, OPTIONS, display=Display())
    assert not (own / "evaluation.json").exists()


def test_a_folder_that_holds_other_things_is_left_as_it_is(own: Path) -> None:
    (own / "evaluation").mkdir()
    (own / "evaluation" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="in the way"):
        evaluate(own, OPTIONS, display=Display())
    assert [path.name for path in (own / "evaluation").iterdir()] == ["notes.txt"]


def test_an_output_that_cannot_be_written_is_told_before_anything_is_drawn(own: Path, cache: Path) -> None:
    (own / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        evaluate(own, OPTIONS, output=own / "file" / "below", display=Display())
    assert not list(cache.rglob("*.png"))


def test_the_pictures_beside_the_result_s_are_those_of_the_base_that_was_named(tiny_base: Path, tmp_path: Path) -> None:
    write_pipeline(tmp_path / "other", SIZES["tiny"], seed=1)
    shown = []
    for base in (tiny_base, tmp_path / "other"):
        asked = Foreign(pipeline=str(tiny_base), token="sks", class_noun="backpack", base=str(base))
        record = evaluate_result(open_pipeline(asked), tmp_path / "out", OPTIONS, Display())
        shown.append((tmp_path / "out" / record["pictures"]["base_subject"][0]).read_bytes())
    assert shown[0] != shown[1]


def test_photos_that_were_trained_on_are_no_held_out_ones(own: Path, photos: Path) -> None:
    with pytest.raises(UserError, match="was trained on"):
        evaluate(own, OPTIONS, held_out=[photos / "1.png"], display=Display())
    assert not (own / "evaluation").exists()
