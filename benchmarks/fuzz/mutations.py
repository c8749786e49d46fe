"""Damage to one file, drawn from a seed: its bytes, what its format says, or what lies in its place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from benchmarks.fuzz.structured import by_format

_ODD_NAMES = ("line\nbreak", "\x1b[31mred", "-rf", " ", "ünï🎒", "a" * 200, "%s{}{0}", ".hidden", "CON", "'\"")
_ODD_BYTES = (b"\0" * 8, b"\xff\xfe\xfa", b"\xed\xa0\x80", b"\r\n", b"\x1b[2J", b"\xf0\x9f\x8e\x92", b"{}", b"\\", b'"')
_HUGE = (2**63 - 1, 2**63, 2**64 - 1, 2**32, 2**40, 100_000_001, 0, 1, 7)


def damage(rng: Random, file: Path, kin: Sequence[Path]) -> str:
    """Do something to a file.

    Args:
        rng: decides what.
        file: of a copy; nothing outside its folder is touched.
        kin: intact files of the same kind, to take parts of; none where a sound file would be taken for another's, as
            in a cache.

    Returns:
        What was done, in a few words.
    """
    chance = rng.random()
    if chance < 0.15:
        return _in_its_place(rng, file, kin)
    if chance < 0.55 and (kin or file.suffix != ".png") and (told := by_format(rng, file)):
        return told
    data = file.read_bytes()
    way = rng.choice(_WAYS)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        data = way(rng, data, kin)
    file.write_bytes(data)
    return way.__name__.strip("_")


def _span(rng: Random, data: bytes, longest: int = 4096) -> tuple[int, int]:
    """Where a part of the bytes begins and ends; half of the time near the beginning, where formats have their say."""
    near = min(len(data), 200) if rng.random() < 0.5 else len(data)
    start = rng.randrange(near + 1)
    return start, min(len(data), start + rng.choice((1, 2, 4, 8, rng.randrange(1, longest))))


def _bits_flipped(rng: Random, data: bytes, kin: Sequence[Path]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64)) if data else 0):
        changed[_span(rng, data)[0] - 1] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _run_set(rng: Random, data: bytes, kin: Sequence[Path]) -> bytes:
    start, end = _span(rng, data)
    filled = rng.choice((b"\0", b"\xff", rng.randbytes(1))) * (end - start)
    return data[:start] + (filled if rng.random() < 0.7 else rng.randbytes(end - start)) + data[end:]


def _run_removed(rng: Random, data: bytes, kin: Sequence[Path]) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def _run_doubled(rng: Random, data: bytes, kin: Sequence[Path]) -> bytes:
    start, end = _span(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 2, 50)) + data[end:]


def _cut_short(rng: Random, data: bytes, kin: Sequence[Path]) -> bytes:
    return data[: rng.choice((0, 1, 7, 8, 9, len(data) // 2, max(len(data) - 1, 0), rng.randrange(len(data) + 1)))]


def _grown(rng: Random, data: bytes, kin: Sequence[Path]) -> bytes:
    return data + rng.choice((b"\0", b"\n", b" ", b"[", rng.randbytes(1))) * rng.choice((1, 100, 100_000))


def _blocks_swapped(rng: Random, data: bytes, kin: Sequence[Path]) -> bytes:
    size = max(1, len(data) // rng.choice((2, 3, 8, 64)))
    blocks = [data[start : start + size] for start in range(0, len(data), size)]
    rng.shuffle(blocks)
    return b"".join(blocks)


def _spliced(rng: Random, data: bytes, kin: Sequence[Path]) -> bytes:
    other = rng.choice(kin).read_bytes() if kin else data[::-1]
    at, there = _span(rng, data)[0], _span(rng, other)[0]
    return data[:at] + other[there:]


def _odd_bytes_put_in(rng: Random, data: bytes, kin: Sequence[Path]) -> bytes:
    start, _ = _span(rng, data)
    return data[:start] + rng.choice(_ODD_BYTES) + data[start:]


def _number_put_in(rng: Random, data: bytes, kin: Sequence[Path]) -> bytes:
    start = rng.choice((0, 0, 4, 8, 16, _span(rng, data)[0]))
    number = rng.choice(_HUGE).to_bytes(8, rng.choice(("little", "big")))[: rng.choice((4, 8, 8))]
    return data[:start] + number + data[start + len(number) :]


def _deeply_nested(rng: Random, data: bytes, kin: Sequence[Path]) -> bytes:
    depth = rng.choice((50, 1_000, 100_000))
    return rng.choice((b"[" * depth, b'{"a":' * depth, b"a = " + b"[" * depth, b"[" * depth + b"]" * depth)) + data


_WAYS: tuple[Callable[[Random, bytes, Sequence[Path]], bytes], ...] = (
    _bits_flipped,
    _run_set,
    _run_removed,
    _run_doubled,
    _cut_short,
    _grown,
    _blocks_swapped,
    _spliced,
    _odd_bytes_put_in,
    _number_put_in,
    _deeply_nested,
)


def _in_its_place(rng: Random, file: Path, kin: Sequence[Path]) -> str:
    """Something else where the file was, or nothing."""
    way = rng.choice(
        (
            "missing",
            "folder",
            "full folder",
            "loop",
            "to nothing",
            "to another",
            "pipe",
            "empty",
            "locked",
            "renamed",
            "beside",
        )
    )
    if way == "beside":
        shutil.copy(file, file.with_name(rng.choice(_ODD_NAMES) + file.suffix))
        return "a copy of an odd name"
    if way == "locked":
        file.chmod(0)
        return "without permission"
    if way == "renamed":
        name = rng.choice(_ODD_NAMES) + rng.choice((file.suffix, file.suffix.upper(), ""))
        file.rename(file.with_name(name))
        return "of an odd name"
    if way == "to another":
        other = rng.choice([other for other in kin if other != file] or [file])
        data = other.read_bytes()
        file.unlink()
        file.with_name(".another").write_bytes(data)
        file.symlink_to(".another")
        return "a link to another"
    file.unlink()
    if way == "folder":
        file.mkdir()
    elif way == "full folder":
        file.mkdir()
        (file / file.name).write_bytes(b"inside")
    elif way == "loop":
        file.symlink_to(file.name)
    elif way == "to nothing":
        file.symlink_to("nowhere")
    elif way == "pipe":
        os.mkfifo(file)
    elif way == "empty":
        file.touch()
    return way
