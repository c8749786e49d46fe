"""The verb: checked, measured where a budget asks for it, carried out, and reported."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from twostage import report
from twostage.comparing import Comparison, Row
from twostage.comparing.budget import probes, steps_within
from twostage.comparing.carry_out import Outcomes, carry_out
from twostage.comparing.check import check, photos_of
from twostage.comparing.engine import Engine
from twostage.comparing.jobs import RUNS, plan_jobs
from twostage.comparing.local import LocalEngine
from twostage.comparing.place import Place, find_place
from twostage.comparing.plan import Cell, plan_cells, plan_variants, scaled
from twostage.comparing.ray_cluster import RayEngine
from twostage.comparing.record import Record
from twostage.comparing.request import Machine, Request
from twostage.comparing.tasks import Evaluate
from twostage.display import Display, terminal_display
from twostage.errors import UserError, without_secrets
from twostage.evaluating import FILE as EVALUATION
from twostage.recipe_evaluation import Evaluation
from twostage.report.pooling import Estimate, Pool
from twostage.report.reading import read_runs

# Of each strategy, at the end; the report has all of them.
COLUMNS = ("dino_unseen", "dino_seen", "clip_t", "drift_class", "dpres")


@contextmanager
def _engine(machine: Machine, workers: int, threads: int) -> Iterator[Engine]:
    """What carries the jobs out, ready for work; afterwards nothing of it runs.

    Raises:
        UserError: Ray is not installed, or there is no such cluster.
    """
    ray = machine.engine == "ray"
    engine: Engine = RayEngine(machine.address, workers, threads) if ray else LocalEngine(workers, _gpus()[:workers])
    try:
        yield engine
    finally:
        engine.close()


def _gpus() -> list[str]:
    """Those of this machine that are visible, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(index) for index in range(count)]


def run(
    request: Request, cells: Sequence[Cell], output: str, machine: Machine, command: str, display: Display | None
) -> Comparison:
    """See `compare`; the cells are those that the recipes' own steps would give."""
    display = display or terminal_display()
    place = find_place(output)
    workers = _workers(machine, len(cells))
    record = Record(place)
    record.open(request)
    check(request, cells)
    command = without_secrets(command) or record.facts.get("command", "")
    threads = int(record.facts.get("threads") or max(_cores() // workers, 1))
    with ExitStack() as held, _engine(machine, workers, threads) as engine:
        measured = record.facts.get("steps") or steps_of_budget(request, cells, engine, threads, place, display)
        held.enter_context(place.alone())
        record.open(request)  # Another process may have begun it meanwhile.
        steps = record.facts.get("steps") or measured
        if steps:
            cells = plan_cells(request, plan_variants(request), {name: own["steps"] for name, own in steps.items()})
        record.begin(request, cells, command=command, threads=threads, steps=steps, photos=photos_of(cells))
        jobs = plan_jobs(place, cells, _with_full_paths(request.evaluation))
        finished = len(cells) - sum(isinstance(job.task, Evaluate) for job in jobs)
        if finished:
            display.say(f"{finished} of {len(cells)} runs are finished already")
        try:
            outcomes = carry_out(jobs, engine, threads, place, display) if jobs else Outcomes()
        except KeyboardInterrupt:
            message = f"stopped; what is finished is kept in {place.root}. Go on with the same command"
            display.say(message)
            raise KeyboardInterrupt(message) from None
    _tell(outcomes, display)
    record.update(failed=outcomes.failed)
    made, rows = _report(place, command, outcomes.failed)
    return Comparison(place.root, tuple(cell.name for cell in cells), made, rows, outcomes.failed)


def steps_of_budget(
    request: Request, cells: Sequence[Cell], engine: Engine, threads: int, place: Place, display: Display
) -> dict[str, Any]:
    """Of each row, the steps of its stages within the budget, and what was measured for that; nothing where the
    recipe's own count."""
    firsts = {cell.variant: cell.recipe for cell in reversed(cells)}
    if request.budget.kind == "recipe":
        return {}
    if request.budget.kind == "steps":
        return {name: {"steps": scaled(recipe, int(request.budget.amount))} for name, recipe in firsts.items()}
    outcomes = carry_out(probes(firsts), engine, threads, place, display, "measuring")
    if outcomes.failed:
        name, reason = next(iter(outcomes.failed.items()))
        raise UserError(f"the budget cannot be kept, since {name} could not be measured: {reason}")
    measured = {name: outcomes.told[f"{name} speed"] for name in firsts}
    steps = {name: steps_within(firsts[name], request.budget.amount, measured[name]) for name in firsts}
    for name, own in steps.items():
        shown = ", ".join(f"{stage} {count}" for stage, count in own.items())
        display.say(f"{name}: {shown} steps in {request.budget.amount:g} s")
    return {name: {"steps": steps[name], "measured": measured[name]} for name in firsts}


def _with_full_paths(options: Evaluation) -> Evaluation:
    """The options for a process that stands in another folder."""

    def full(text: str) -> str:
        return os.path.abspath(text) if os.path.exists(text) else text

    pairs = [encoder.partition("=") for encoder in options.encoders]
    encoders = tuple(f"{role}{equals}{full(source)}" for role, equals, source in pairs)
    suite = full(options.suite) if os.path.isfile(options.suite) else options.suite
    return options.model_copy(update={"suite": suite, "encoders": encoders})


def _workers(machine: Machine, runs: int) -> int:
    """Processes on this machine, for so many runs.

    Raises:
        UserError: more are asked for than there are GPUs.
    """
    gpus = len(_gpus())
    if gpus and (machine.workers or 0) > gpus:
        raise UserError(f"--workers {machine.workers}: this machine has {gpus} GPUs, and each has one worker")
    return machine.workers or gpus or min(_cores(), runs)


def _tell(outcomes: Outcomes, display: Display) -> None:
    """What the workers noted, each note once."""
    notes: dict[str, list[str]] = {}
    for name, told in outcomes.told.items():
        for note in told.get("notes", ()):
            notes.setdefault(note, []).append(name)
    for note, names in notes.items():
        of = names[0] if len(names) == 1 else f"{len(names)} runs"
        display.say(f"note ({of}): {note}")


def _report(place: Place, command: str, failed: Mapping[str, str]) -> tuple[str | None, tuple[Row, ...]]:
    """Make the report of what is finished: where it is, and the table in short."""
    with place.whole("/evaluation") as folder:
        if not any(folder.glob(f"{RUNS}/**/{EVALUATION}")):
            return None, ()
        notes = [f"{name} failed: {reason}" for name, reason in failed.items()]
        report.build([folder], folder / "report.html", title="", command=command, notes=notes)
        rows = _rows(Pool(read_runs([folder])[0]))
    return place.join("report.html"), rows


def _rows(pool: Pool) -> tuple[Row, ...]:
    """Means with their intervals."""
    figures = [name for name in COLUMNS if name in pool.figures]
    if "dino_unseen" in figures:
        figures.remove("dino_seen")
    rows = []
    for strategy in pool.strategies:
        cells = {pool.figures[name].title: _shown(pool.estimate(strategy, name)) for name in figures}
        seconds = pool.cost(strategy, "train_seconds")
        cells["training, s"] = f"{seconds.value:.0f}" if seconds else ""
        rows.append(Row(strategy, cells, len(pool.cells_of(strategy))))
    return tuple(rows)


def _shown(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
