"""`twostage plan`: what a run takes, before it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twostage.recipe_file import load_recipe

from .flags import recipe_flags

if TYPE_CHECKING:
    from twostage.planning import Phase, Plan

# Bytes a second between a card and pinned host memory: an estimate, three quarters of what these could carry.
_PCIE = {"PCIe 3 x16": 12e9, "PCIe 4 x16": 24e9}


@recipe_flags
def plan(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A recipe's name (see `twostage recipe list`), TOML file or run folder."),
    ],
    vram: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory of a card, as 8GB: say what fits it, and what to change."),
    ] = None,
    *,
    overrides: dict[str, Any],
) -> None:
    """Predict memory, time and disk of a run: without a card, without weights, without photos.

    The run's own steps are simulated. --base takes sd15, sd21 and sdxl too, whose sizes are known by name.

    Example: twostage plan two-stage --base sd15 --vram 8GB
    """
    resolved = load_recipe(recipe, overrides=overrides)

    from twostage import planning  # imports torch
    from twostage.display import terminal_display

    size = None if vram is None else planning.read_size(vram)
    planned = planning.plan(resolved, size, terminal_display(), planning.card_here())
    _print_phases(planned)
    _print_cards(planned)
    if vram and size:
        _print_ladder(planned, vram, size)
        planning.check_fits(planned, vram)


def _print_phases(planned: Plan) -> None:
    from twostage.planning import GIB, card_needs

    headings = ("phase", "allocated GiB", "reserved GiB", "card, estimate, GiB", "how often", "TFLOP each")
    rows = []
    for phase in planned.rehearsed.phases:
        least, usual = card_needs(phase)
        sizes = (f"{phase.allocated / GIB:.2f}", f"{phase.reserved / GIB:.2f}", f"{least:.1f} to {usual:.1f}")
        rows.append((phase.name, *sizes, _times(phase), f"{phase.work.flops / 1e12:.3g}"))
    _print_table("memory on the card, simulated", headings, rows)
    room = planned.room
    typer.echo(f"run folder: at most {room.disk / GIB:.1f} GiB on disk")
    if room.cache:
        typer.echo(f"cache: at most {room.cache / GIB:.1f} GiB of class images")
    typer.echo(f"host memory: about {room.ram / GIB:.0f} GiB beside a card (estimate)")


def _print_cards(planned: Plan) -> None:
    from twostage.planning import GIB, fits, known_cards

    phases = [phase for phase in planned.rehearsed.phases if phase.work.flops]
    training = [phase for phase in phases if phase.unit == "step"]
    rows = []
    for card in known_cards():
        cells = [f"{low:.2g} to {high:.2g}" for low, high in (card.seconds(phase.work) for phase in training)]
        whole = [sum(times) / 60 for times in zip(*(_whole(card, phase) for phase in phases), strict=True)]
        room = "yes" if fits(planned.rehearsed.decisive, card.memory * GIB) == "yes" else "no"
        rows.append((f"{card.name}, {card.memory} GB", room, *cells, f"{whole[0]:.2g} to {whole[1]:.2g}"))
    headings = ("card", "fits", *(f"{phase.name}, s a step" for phase in training), "all, minutes")
    _print_table("time, estimated from operations alone; sources: twostage/planning/cards.json", headings, rows)


def _whole(card: Any, phase: Phase) -> list[float]:
    return [seconds * phase.count for seconds in card.seconds(phase.work)]


def _print_ladder(planned: Plan, vram: str, size: int) -> None:
    from twostage.planning import GIB, fits

    rows: list[tuple[str, ...]] = []
    for rung in planned.ladder:
        if rung.rehearsed is None:
            rows.append((rung.standing.rung.name, "", "", "", "", "", rung.standing.rung.price, "not needed"))
            continue
        phase = rung.rehearsed.decisive
        mark = "<- " if rung is planned.chosen else ""
        copies = " / ".join(f"{rung.copied / speed:.2f}" for speed in _PCIE.values()) if rung.copied else ""
        waiting = max(phase.host for phase in rung.rehearsed.phases)
        host = f"{waiting / GIB:.2f}" if waiting else ""
        cells = (f"{phase.allocated / GIB:.2f}", phase.name, host, f"{rung.slower:.2f}x", copies)
        rows.append((rung.standing.rung.name, *cells, rung.standing.rung.price, mark + fits(phase, size)))
    copies = f"copies, s a step over {' / '.join(_PCIE)}"
    headings = ("rung, on top of those above", "peak GiB", "in", "host GiB", "operations", copies, "price")
    _print_table("the ladder", (*headings, f"fits {vram}"), rows)
    if planned.chosen and planned.chosen.standing.changes:
        typer.echo(f"to fit {vram}, add: {' '.join(_flags(planned))}")


def _flags(planned: Plan) -> list[str]:
    """What the rungs up to the chosen one change, as flags."""
    flags = []
    for name, value in planned.changes.items():
        flag = name.replace("_", "-")
        table, _, option = flag.rpartition(".")
        switch = f"--{table}{'.' if table else ''}{option}"
        if isinstance(value, bool):
            flags.append(switch if value else f"--no-{flag}")
        else:
            flags.append(f"{switch} {value}")
    return flags


def _times(phase: Phase) -> str:
    return f"{phase.count} {phase.unit}{'' if phase.count == 1 else 's'}"


def _print_table(title: str, headings: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    if not sys.stdout.isatty():  # For grep and awk: one line each, never wrapped.
        for cells in (headings, *rows):
            typer.echo("\t".join(cells))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, no_wrap=number == 0)
    for cells in rows:
        table.add_row(*cells)
    Console().print(table)
