"""One input: made, read, and looked at for what the reading did to it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from random import Random

from benchmarks.fuzz.apart import SECONDS, Outcome, do_apart
from benchmarks.fuzz.kinds import KINDS, Kind, use
from benchmarks.fuzz.material import Material
from benchmarks.fuzz.mutations import damage


@dataclass(frozen=True)
class Tried:
    """An input, and what came of it."""

    kind: str
    number: int
    damaged: str
    outcome: Outcome


class Fuzz:
    """Tries inputs in a folder.

    Args:
        folder: an empty one; what is intact is made in it.
        seed: of all inputs; each depends on that, its kind and its number alone.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.material, self._input, self._seed = Material(folder / "intact"), folder / "input", seed
        self.material.folder.mkdir(parents=True)
        self.material.make()
        self._before = snapshot(self.material.folder)

    def plan(self, count: int) -> list[tuple[Kind, int]]:
        """So many inputs, by kinds as these share in them; those of a smaller count are among those of a larger."""
        whole = sum(kind.share for kind in KINDS)
        return [(kind, number) for kind in KINDS for number in range(max(1, round(count * kind.share / whole)))]

    def intact(self) -> Iterator[Tried]:
        """Every kind without any damage: a kind that cannot be read so would prove nothing."""
        for kind in KINDS:
            for variant in dict.fromkeys(kind.of):
                yield self._try(kind, -1, Random(f"{self._seed} {kind.name} intact"), variant)

    def try_one(self, kind: Kind, number: int) -> Tried:
        """Make an input, and have it read."""
        rng = Random(f"{self._seed} {kind.name} {number}")
        return self._try(kind, number, rng, rng.choice(kind.of), damaged=True)

    def _try(self, kind: Kind, number: int, rng: Random, variant: str, *, damaged: bool = False) -> Tried:
        shutil.rmtree(self._input, ignore_errors=True)
        source = self.material.folder / kind.source.format(variant)
        subject = self._input / ("cache" if kind.name.startswith("cache") else source.name)
        shutil.copytree(source, subject)
        told = "nothing"
        if damaged:
            target = rng.choice(kind.targets(subject))
            kin = [path for path in kind.targets(source) if path.suffix == target.suffix and subject.name != "cache"]
            inside = target.relative_to(subject).as_posix()
            told = f"{variant or source.name}/{inside}: {damage(rng, target, kin)}"
        before = snapshot(subject)

        def read() -> None:
            use(self._input / "cache", self._input / "tmp")
            tempfile.tempdir = None
            kind.read(self.material, subject, rng)

        outcome = do_apart(read)
        if outcome.kind == "failed" and "hangs" in outcome.told[:40]:
            outcome = do_apart(read, 2 * SECONDS)  # Another process may have kept the machine busy.
        harmed = [name for name in changes(before, snapshot(subject)) if not _may_write(kind, name)]
        harmed += changes(self._before, snapshot(self.material.folder))
        if harmed and outcome.kind != "failed":
            outcome = Outcome("failed", f"harmed: {', '.join(harmed)}")
        return Tried(kind.name, number, told, outcome)


def _may_write(kind: Kind, name: str) -> bool:
    return kind.writes is None or any(fnmatch(name, allowed) for allowed in kind.writes)


def snapshot(folder: Path) -> dict[str, str]:
    """What lies in a folder: kind and content of everything, by name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "something else"
    return found


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Names of what was changed, removed or added."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
