"""`evaluate`: what a result is worth, in figures that a researcher would accept, with every choice written beside them.

Protocol of DreamBooth (arXiv 2208.12242, section 4): identity and prompt fidelity over a suite of prompts. Beside them
what the model forgot, measured against the untouched base on the same prompts and seeds.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage import __version__
from twostage.cache import Shelf
from twostage.display import Display, terminal_display
from twostage.errors import UserError
from twostage.evaluation.bootstrap import interval
from twostage.evaluation.checkpoints import step_curve
from twostage.evaluation.encoders import load_encoders
from twostage.evaluation.figures import Figure, dump_figure
from twostage.evaluation.material import Material, Opened, Shots
from twostage.evaluation.metrics import measure
from twostage.evaluation.real import real_row
from twostage.evaluation.suites import Suite, load_suite, load_unrelated
from twostage.finished import placed
from twostage.machine import usual_device
from twostage.method.sampling import assemble, check_steps, read_untouched
from twostage.quiet import quiet
from twostage.recipe import Sample
from twostage.recipe_evaluation import Evaluation
from twostage.subject.photos import Photo, open_mask, open_photo
from twostage.weights import refuse_archive
from twostage.writing import UNFINISHED, whole_file, writing

from .result import Result, open_pipeline, open_run
from .series import Drawer, Series, plan_series, read_drawn, write_picture

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["FILE", "evaluate", "evaluate_result", "open_pipeline", "open_run"]

FILE = "evaluation.json"
_FORMAT = 1
_INTERVAL = "95 % bootstrap over prompts, of the class and of unrelated prompts over pictures; 1000 resamples"


def evaluate(
    run: Path,
    options: Evaluation | None = None,
    *,
    held_out: Sequence[Path] = (),
    output: Path | None = None,
    display: Display | None = None,
) -> dict[str, Any]:
    """Evaluate a finished run.

    Args:
        run: its folder, or a delta of it.
        options: what is drawn and measured.
        held_out: photos of the subject, or folders of them, in place of those that the recipe held out.
        output: folder for evaluation.json and the pictures; the run's own when not given.
        display: for progress and notes; the terminal when not given.

    Returns:
        What evaluation.json holds.

    Raises:
        UserError: there is no finished run, a photo or suite cannot be read, the output cannot be written, or the run
            draws nothing but black.
    """
    refuse_archive(run, "the run folder in it")
    if output is None and os.path.isfile(run):
        raise UserError(f"{run} is a delta: say where its evaluation goes, with --output FOLDER")
    result = open_run(run, held_out)
    return evaluate_result(result, output or result.folder, options or Evaluation(), display)


def evaluate_result(
    result: Result, output: Path, options: Evaluation, display: Display | None = None
) -> dict[str, Any]:
    """Evaluate what `open_run` or `open_pipeline` found; see `evaluate`."""
    display = display or terminal_display()
    if mixed := [strength for strength in options.strengths if strength != 1 and result.unmixable]:
        raise UserError(f"strength {mixed[0]:g}: {result.unmixable}; leave --strength out")
    suite = load_suite(options.suite or _usual_suite(result), class_noun=result.class_noun, first=options.num_prompts)
    unrelated = load_unrelated(pocket=result.is_pocket, class_noun=result.class_noun)
    options.check_guidance(result.class_noun)
    if options.away_from == "base" and result.base is None:
        raise UserError("away_from is 'base', and which base that is nobody said; name it with --base")
    sampler = _sampler(result, options)
    if result.base:
        check_steps(result.base, sampler.num_inference_steps)
    with quiet():
        encoders, missing, encoder_facts = load_encoders(
            options.encoders, pocket=result.is_pocket, device=usual_device()
        )
    for role, reason in missing.items() if not result.is_pocket else ():
        display.say(f"note: without {role}: {reason}")
    for note in result.notes:
        display.say(f"note: {note}")
    planned = plan_series(options, suite, unrelated, result.class_noun)
    folder = _Pictures(output, result, planned, sampler)  # Before anything is drawn: it may not be writable.
    before = _draw_base(result, planned, sampler, display)
    shots, scheduler = folder.draw(1.0, display)
    photos = {"seen": _photo_shots(result.photos), "unseen": _photo_shots(result.held_out)}
    material = Material({**shots, **before, **photos}, encoders)
    figures, left_out = measure(material)
    record: dict[str, Any] = {
        "format": _FORMAT,
        "versions": {"twostage": __version__},
        "result": result.facts,
        "choices": {
            **_choices(options, suite, planned, sampler),
            "class_prompt": planned["class"].filled(result.class_noun)[0] if "class" in planned else None,
            "scheduler": scheduler,
            "resolution": result.side,
            "encoders": encoder_facts,
            "interval": _INTERVAL,
        },
        "figures": _dump(figures),
        "real": _dump(real_row(material)),
        "left_out": left_out | {f"{role} encoder": reason for role, reason in missing.items()},
    }
    if before:
        record["base"] = _dump(measure(material.of_base())[0])
    curves = {
        "strength": _strength_curve(folder, material, options, figures, display),
        "step": step_curve(result.folder),
    }
    if any(curves.values()):
        record["curve"] = {name: curve for name, curve in curves.items() if curve}
    record["pictures"] = folder.names(1.0) | folder.keep_base(before)
    with whole_file(output / FILE) as temporary:
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # A path's bytes may be no text.
    return record


def _usual_suite(result: Result) -> str:
    return "pocket" if result.is_pocket else "recontextualization"


def _sampler(result: Result, options: Evaluation) -> Sample:
    own = result.sampler
    return Sample(
        num_inference_steps=options.num_inference_steps or own.num_inference_steps,
        guidance_scale=own.guidance_scale if options.guidance_scale is None else options.guidance_scale,
        class_guidance=own.class_guidance if options.class_guidance is None else options.class_guidance,
        away_from=options.away_from or own.away_from,
    )


def _draw_base(result: Result, planned: dict[str, Series], sampler: Sample, display: Display) -> dict[str, Shots]:
    """The untouched base's pictures, from the cache where it has them; nothing where the base is not known."""
    base = result.base
    if base is None:
        return {}
    drawer = Drawer(cache(lambda: placed(base, assemble(base))), sampler, result.side, f"the base {base.source}")
    drawn: dict[str, Shots] = {}
    for name, series in planned.items():
        if name == "subject" and not result.class_noun:
            continue  # Without its noun there is nothing to ask the base for.
        facts = {
            "base": base.pictures_hash,
            # A GPU's last bits are others, and would pass for drift where the result is drawn on the CPU.
            "device": usual_device(),
            "prompts": series.filled(result.class_noun),
            "count": series.count,
            "seed": series.seed,
            "side": result.side,
            "num_inference_steps": sampler.num_inference_steps,
            "guidance_scale": sampler.guidance_scale,
        }
        shelf = Shelf("evaluation-pictures", ".png", facts)
        _make_folder(shelf.path)
        files = [shelf.file(index) for index in range(series.total)]
        images = drawer.pictures(series, result.class_noun, result.class_noun, files, display)
        drawn[f"base_{name}"] = series.shots(images, result.class_noun, result.class_noun)
    return drawn


class _Pictures:
    """The result's pictures below `output`/evaluation: kept while what they depend on stays the same."""

    def __init__(self, output: Path, result: Result, planned: dict[str, Series], sampler: Sample) -> None:
        self._output, self._result, self._planned, self._sampler = output, result, planned, sampler
        self._root = output / "evaluation"
        facts = {
            "content": result.content,
            "phrase": result.phrase,
            "class_noun": result.class_noun,
            "side": result.side,
            "device": usual_device(),
            "sampler": [sampler.num_inference_steps, sampler.guidance_scale, sampler.class_guidance, sampler.away_from],
            "untouched": result.base.content_hash if result.base and sampler.away_from == "base" else None,
            "series": {name: [series.templates, series.count, series.seed] for name, series in planned.items()},
        }
        self._facts = json.dumps(facts, indent=2)
        stored = self._root / "pictures.json"
        _make_folder(self._root)
        for path in (self._root, *self._root.iterdir()):
            if path.is_symlink():  # What is drawn or forgotten would be so elsewhere.
                raise UserError(f"{path} is a link, and pictures would go where it leads; remove it")
        if _text_of(stored) != self._facts:
            self._forget(stored)
            with whole_file(stored) as temporary:
                temporary.write_text(self._facts, encoding="utf-8")

    def _forget(self, stored: Path) -> None:
        """Remove what was drawn with other choices, and the figures of that.

        Raises:
            UserError: what is there is no evaluation's.
        """
        with writing(self._root):
            there = [path for path in self._root.iterdir() if not path.name.startswith(UNFINISHED)]
            if there and not stored.is_file():
                raise UserError(
                    f"{self._root} is in the way: pictures would go there, and it holds other things; choose another "
                    "folder with --output"
                )
            (self._output / FILE).unlink(missing_ok=True)
            # All but `stored`, which says, should this be cut short, that the rest may go.
            for path in there:
                if path.is_dir():
                    shutil.rmtree(path)
                elif path != stored:
                    path.unlink()

    def _folder(self, strength: float) -> Path:
        return self._root if strength == 1 else self._root / f"strength-{strength:g}"

    def _files(self, name: str, strength: float) -> list[Path]:
        return [self._folder(strength) / name / f"{index:04d}.png" for index in range(self._planned[name].total)]

    def draw(self, strength: float, display: Display) -> tuple[dict[str, Shots], str]:
        """Every set, and the scheduler that they were drawn with."""
        scheduler_file = self._folder(strength) / "scheduler.txt"

        @cache
        def load() -> DiffusionPipeline:
            loaded = self._result.load(strength)
            _make_folder(scheduler_file.parent)
            scheduler_file.write_text(type(loaded.scheduler).__name__, encoding="utf-8")
            return loaded

        whose = self._result.facts["name"] + (f" at strength {strength:g}" if strength != 1 else "")
        base = self._result.base if self._sampler.away_from == "base" else None
        untouched = partial(read_untouched, base) if base else None
        drawer = Drawer(load, self._sampler, self._result.side, whose, untouched)
        drawn = {}
        for name, series in self._planned.items():
            files = self._files(name, strength)
            _make_folder(files[0].parent)
            # The class prompt names the class alone, and the unrelated ones nothing of it.
            phrase = self._result.phrase if name == "subject" else self._result.class_noun
            images = drawer.pictures(series, phrase, self._result.class_noun, files, display)
            drawn[name] = series.shots(images, phrase, self._result.class_noun)
        return drawn, _text_of(scheduler_file)

    def keep_base(self, drawn: dict[str, Shots]) -> dict[str, list[str]]:
        """Put what the base drew in place of the subject beside what the result drew: where it is."""
        if "base_subject" not in drawn:
            return {}
        images = drawn["base_subject"].images
        files = [self._root / "base_subject" / f"{index:04d}.png" for index in range(len(images))]
        _make_folder(self._root / "base_subject")
        for image, file in zip(images, files, strict=True):
            kept = read_drawn(file, self._result.side)
            if kept is None or kept.tobytes() != image.tobytes():  # --base may have been another.
                write_picture(image, file)
        return {"base_subject": [file.relative_to(self._output).as_posix() for file in files]}

    def names(self, strength: float) -> dict[str, list[str]]:
        """Where they are, relative to the output."""
        return {
            name: [file.relative_to(self._output).as_posix() for file in self._files(name, strength)]
            for name in self._planned
        }


def _strength_curve(
    pictures: _Pictures, material: Material, options: Evaluation, own: list[Figure], display: Display
) -> list[dict[str, Any]]:
    """The figures between base and result, each strength drawn as the result was."""
    curve = []
    for strength in sorted(set(options.strengths)):
        figures = own
        if strength != 1:
            shots, _ = pictures.draw(strength, display)
            figures, _ = measure(Material({**material.shots, **shots}, material.encoders))
        curve.append({"at": strength, "figures": _dump(figures)})
    return curve


def _choices(options: Evaluation, suite: Suite, planned: dict[str, Series], sampler: Sample) -> dict[str, Any]:
    return {
        "suite": suite.name,
        "suite_sha256": suite.sha256,
        "prompts": list(suite.prompts),
        "images_per_prompt": options.images_per_prompt,
        "seed": options.seed,
        "num_inference_steps": sampler.num_inference_steps,
        "guidance_scale": sampler.guidance_scale,
        "class_guidance": sampler.class_guidance,
        "away_from": sampler.away_from,
        "num_class_images": options.num_class_images,
        "unrelated_prompts": list(planned["unrelated"].templates) if "unrelated" in planned else [],
    }


def _photo_shots(photos: Sequence[Photo]) -> Shots:
    return Shots(Opened(photos, open_photo), masks=Opened(photos, open_mask))


def _dump(figures: Sequence[Figure]) -> dict[str, Any]:
    return {
        figure.name: dump_figure(figure, interval(figure.values) if len(figure.values) > 1 else None)
        for figure in figures
    }


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}; choose another folder with --output") from error


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
