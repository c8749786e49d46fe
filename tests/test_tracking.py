"""Trackers get the numbers, the recipe and the sample pictures of a run; what they wrote is read back."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.watching import Watcher, ctrl_c, metrics, without
from twostage.display import Display
from twostage.errors import UserError
from twostage.recipe import Recipe, Sample
from twostage.run import train


def needs(tracker: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(tracker) is None, reason=f"{tracker} is not installed")


@pytest.fixture
def watched(tiny_recipe: Recipe) -> Recipe:
    """Two prompts of two pictures, at steps 4 and 6 of both stages."""
    return without(tiny_recipe, sample=Sample(prompts=("a {}", "snow"), per_prompt=2, num_inference_steps=2))


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics(run)]


# TensorBoard


def read_events(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    return events.Reload()


@needs("tensorboard")
def test_tensorboard_shows_both_stages_on_one_clock(watched: Recipe, tmp_path: Path) -> None:
    run = train(without(watched, report_to="tensorboard"), tmp_path / "run", display=Display())
    events = read_events(run)
    scalars = [entry for stage in (1, 2) for entry in events.Scalars(f"stage{stage}/loss")]
    assert [entry.step for entry in scalars] == list(range(1, 13))
    assert [entry.value for entry in scalars] == pytest.approx(losses(run), rel=1e-6)
    assert {"stage2/lr", "stage2/grad_norm"} <= set(events.Tags()["scalars"])


@needs("tensorboard")
def test_tensorboard_shows_the_sample_pictures(watched: Recipe, tmp_path: Path) -> None:
    run = train(without(watched, report_to="tensorboard"), tmp_path / "run", display=Display())
    events = read_events(run)
    assert [entry.step for entry in events.Images("samples/prompt2")] == [4, 6, 10, 12]
    sheet = np.asarray(Image.open(io.BytesIO(events.Images("samples/prompt1")[-1].encoded_image_string)))
    first, second = (np.asarray(Image.open(run / f"samples/stage2-000006/prompt1-{seed}.png")) for seed in (1, 2))
    assert np.array_equal(sheet, np.concatenate([first, second], axis=1))


@needs("tensorboard")
def test_tensorboard_has_the_recipe_but_no_paths(watched: Recipe, tmp_path: Path) -> None:
    run = train(without(watched, report_to="tensorboard", stage2=None), tmp_path / "run", display=Display())
    (options,) = (run / "tensorboard").rglob("hparams.yml")
    text = options.read_text()
    assert "stage1.learning_rate: 0.005" in text
    assert str(watched.data.photos) not in text


@needs("tensorboard")
def test_a_stopped_run_is_in_tensorboard_as_far_as_it_came_and_goes_on_there(watched: Recipe, tmp_path: Path) -> None:
    recipe = without(watched, report_to="tensorboard")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=Watcher(("stage 1", 5), ctrl_c))
    assert [entry.step for entry in read_events(tmp_path / "run").Scalars("stage1/loss")] == [1, 2, 3, 4, 5]
    run = train(recipe, tmp_path / "run", resume=True, display=Display())
    events = read_events(run)
    assert [entry.step for entry in events.Scalars("stage1/loss")] == [1, 2, 3, 4, 5, 6]
    assert [entry.step for entry in events.Images("samples/prompt1")] == [4, 6, 10, 12]


# Weights & Biases


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    yield
    import wandb

    wandb.teardown()  # It reads the environment once a process.


def read_records(run: Path) -> list[Any]:
    """What W&B would send, of all sessions: its files are logs in LevelDB's format."""
    from wandb.proto.wandb_internal_pb2 import Record

    records = []
    for file in sorted(run.rglob("*.wandb")):
        data, place, whole = file.read_bytes(), 7, b""
        while place + 7 <= len(data):
            left = 32768 - place % 32768
            if left < 7:  # too short for a header, and padded
                place += left
                continue
            length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
            whole += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # a whole record, or the last part of one
                records.append(Record.FromString(whole))
                whole = b""
    return records


def history(records: list[Any], name: str) -> dict[int, Any]:
    """Values by step."""
    found = {}
    for record in records:
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if name in items:
            found[int(record.history.step.num)] = json.loads(items[name])
    return found


@needs("wandb")
def test_wandb_gets_numbers_pictures_and_recipe(watched: Recipe, tmp_path: Path, offline: None) -> None:
    run = train(without(watched, report_to="wandb"), tmp_path / "run", display=Display())
    records = read_records(run)
    numbers = history(records, "stage1/loss") | history(records, "stage2/loss")
    assert list(numbers) == list(range(1, 13))
    assert list(numbers.values()) == pytest.approx(losses(run))
    assert history(records, "samples/prompt1/count") == {4: 2, 6: 2, 10: 2, 12: 2}
    assert len(list((run / "wandb").rglob("media/images/samples/*.png"))) == 16
    options = {item.key: item.value_json for record in records for item in record.config.update}
    assert options["stage2.learning_rate"] == "0.001"
    assert "data.photos" not in options


@needs("wandb")
def test_a_resumed_run_is_the_same_one_to_wandb(watched: Recipe, tmp_path: Path, offline: None) -> None:
    recipe = without(watched, report_to="wandb", stage2=None)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=Watcher(("stage 1", 3), ctrl_c))
    run = train(recipe, tmp_path / "run", resume=True, display=Display())
    records = read_records(run)
    known = json.loads((run / "run.json").read_text())["wandb_id"]
    assert {record.run.run_id for record in records if record.HasField("run")} == {known}
    assert list(history(records, "stage1/loss")) == [1, 2, 3, 4, 5, 6]


@needs("wandb")
def test_a_tracker_that_does_not_start_leaves_nothing(
    watched: Recipe, tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match="report_to wandb did not start: .*wandb login") as error:
        train(without(watched, report_to="wandb"), tmp_path / "run", display=Display())
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
