"""What is wrong here, or will be, and what to do about it: from what was found and what was tried."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.filesize import decimal

from twostage.doctor.attempts import shown_times
from twostage.doctor.facts import Place
from twostage.doctor.trials import TRIALS
from twostage.doctor.trying import Tried

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
_GET_TORCH = "install the torch for your driver, as https://pytorch.org/get-started/locally says"
# Several times as long as float32 is no use of a half.
_SLOW = 2.0


@dataclass(frozen=True)
class Finding:
    """One thing to be said, for people.

    Attributes:
        level: "error": nothing can be trained; "warning": it will fail or be slow in some runs; "note": worth knowing.
        says: what was found, in a few words.
        advice: what to do.
    """

    level: Level
    says: str
    advice: str


@dataclass(frozen=True)
class Here:
    """What is known of this machine.

    Attributes:
        tried: what came of the trials.
        places: that are written to.
        settings: environment variables, as `facts.SETTINGS`.
        unmet: what is needed and not there, and what is in its place.
        driver: NVIDIA's; "" where none was found.
        cores: that this process may run on.
        memory: bytes of the machine.
        limit: bytes that this process may take; None where nobody limits it.
    """

    tried: Sequence[Tried]
    places: Sequence[Place]
    settings: Mapping[str, str]
    unmet: Mapping[str, str]
    driver: str
    cores: int
    memory: int
    limit: int | None

    def facts(self, area: str) -> dict[str, Any]:
        """Of all trials of an area together."""
        return {name: value for tried in self.tried if tried.area == area for name, value in tried.facts.items()}


def find_mistakes(here: Here) -> list[Finding]:
    """Worst first."""
    parts = (_in_trials, _in_versions, _on_the_card, _in_places, _in_settings, _in_limits, _in_numbers)
    found = [finding for part in parts for finding in part(here)]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def _in_trials(here: Here) -> Iterator[Finding]:
    packages = {trial.key: trial.package for trial in TRIALS if trial.package}
    vital = {trial.key for trial in TRIALS if trial.vital}
    broken = [packages[tried.key] for tried in here.tried if tried.outcome == "fails" and tried.key in packages]
    for tried in here.tried:
        if tried.outcome != "fails":
            continue
        says = f"{tried.key} fails: {tried.says}"
        if package := packages.get(tried.key):
            advice = f"install the {package} made for this torch, or remove it: pip uninstall {package}"
            yield Finding("warning", says, f"{advice}. Training needs none, but other libraries import it where it is")
        elif tried.key in vital:
            yield Finding("error", says, _way_out(tried, broken))
        else:
            yield Finding("warning", says, "leave that option out here; please report it with this page")


def _way_out(tried: Tried, broken: Sequence[str]) -> str:
    if tried.area == "torch":
        return _GET_TORCH
    if broken:
        return f"first put right or remove what is broken: pip uninstall {' '.join(broken)}"
    if tried.area == "libraries":
        return "install twostage into an environment of its own, where nothing else asks for other versions"
    return "install twostage anew; if that does not help, please report it with this page"


def _in_versions(here: Here) -> Iterator[Finding]:
    for needed, there in here.unmet.items():
        yield Finding("warning", f"twostage needs {needed}, and {there} is installed", f"pip install '{needed}'")


def _on_the_card(here: Here) -> Iterator[Finding]:
    torch = here.facts("torch")
    if here.driver.startswith("nvidia-smi fails"):
        yield Finding("warning", f"NVIDIA's driver does not answer: {here.driver}", "install it anew, or restart")
    elif here.driver and torch.get("device") == "cpu":
        hidden = here.settings.get("CUDA_VISIBLE_DEVICES")
        if not torch.get("cuda"):
            yield Finding("warning", "there is an NVIDIA card, and this torch is built without CUDA", _GET_TORCH)
        elif hidden is not None:
            says = f"there is an NVIDIA card, and CUDA_VISIBLE_DEVICES={hidden!r} leaves torch none"
            yield Finding("warning", says, "unset CUDA_VISIBLE_DEVICES, or set it to 0")
        else:
            says = f"there is an NVIDIA card, and torch cannot use it: {torch.get('refusal', 'it does not say why')}"
            yield Finding("warning", says, f"update the driver, or {_GET_TORCH}")
    if "total" in torch and torch["free"] < torch["total"] / 2:
        says = f"of the card's {decimal(torch['total'])} only {decimal(torch['free'])} are free"
        yield Finding("warning", says, "close what else uses it, as nvidia-smi lists")


def _in_places(here: Here) -> Iterator[Finding]:
    sizes = here.facts("planning")
    needs = {"working folder": sizes.get("run", 0), "hub cache": sizes.get("weights", 0)}
    elsewhere = {
        "working folder": "write runs to another folder with --output",
        "twostage cache": "set TWOSTAGE_CACHE to another folder",
        "hub cache": "set HF_HOME to another folder",
        "temporary files": "set TMPDIR to another folder",
    }
    for place in here.places:
        other = elsewhere[place.name]
        if place.fault:
            yield Finding("warning", f"{place.name}: nothing can be written to {place.path}: {place.fault}", other)
        need = needs.get(place.name, 0)
        if place.free is not None and place.free < need - (place.used or 0):
            what = "the run folder of two-stage" if place.name == "working folder" else "the weights"
            says = f"{place.name}: {decimal(place.free)} free in {place.path}; {what} with Stable Diffusion 1.5 takes "
            fewer = "make room, keep fewer checkpoints (--checkpoints.keep 1), or"
            advice = f"{fewer if place.name == 'working folder' else 'make room, or'} {other}"
            yield Finding("warning", f"{says}{decimal(need)}; the pocket model far less", advice)
        if place.in_memory and place.name != "temporary files":
            yield Finding("warning", f"{place.name}: {place.path} is memory ({place.kind}), not disk", other)
        if place.over_network and place.name == "twostage cache":
            yield Finding("note", f"{place.name}: {place.path} is on a network ({place.kind}), which is slow", other)


def _in_settings(here: Here) -> Iterator[Finding]:
    settings = here.settings
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if _is_on(settings.get(name)):
            says = f"{name}={settings[name]}: a base from the hub is found only if it has been downloaded before"
            yield Finding("note", says, f"unset {name} to download one, or give --base a folder")
    threads = settings.get("OMP_NUM_THREADS", "")
    if here.facts("torch").get("device") == "cpu" and threads.isdecimal() and 0 < int(threads) <= here.cores / 2:
        says = f"OMP_NUM_THREADS={threads}, and there are {here.cores} cores to train on"
        yield Finding("note", says, "unset it, if nothing else is to use them")
    for name in ("CUDA_LAUNCH_BLOCKING", "PYTORCH_NO_CUDA_MEMORY_CACHING"):
        if _is_on(settings.get(name)):
            yield Finding("warning", f"{name}={settings[name]} makes a card slow", f"unset {name}")
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        told = settings.get(name, "").replace(" ", "")
        if "backend:cudaMallocAsync" in told:
            says = f"{name}={told}: `twostage plan` predicts for torch's own allocator, not for this one"
            yield Finding("note", says, f"unset {name} if a run takes more than was predicted")
        if "expandable_segments:True" in told and sys.platform == "win32":
            yield Finding("note", f"{name}={told}: Windows has no expandable segments", f"unset {name}")


def _is_on(value: str | None) -> bool:
    return (value or "").lower() in ("1", "on", "yes", "true")


def _in_limits(here: Here) -> Iterator[Finding]:
    if here.limit and here.limit < here.memory:
        says = f"this process may take {decimal(here.limit)} of the {decimal(here.memory)} that other programs show"
        yield Finding("note", says, "for more, raise the limit of the container or the batch job")


def _in_numbers(here: Here) -> Iterator[Finding]:
    for tried in here.tried:
        times = tried.facts.get("times", 0.0)
        if times > _SLOW:
            says = f"{tried.name} is slow here: a matrix product took {shown_times(times)} times as long as in float32"
            yield Finding("note", says, f"leave mixed_precision at 'no', not {tried.name!r}")
