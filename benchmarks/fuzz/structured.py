"""Damage that a format's own reader does not notice: odd values in JSON, TOML and safetensors."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzz.pictures import odd_picture

# Values as JSON has them; the texts are written as they are.
_ODD: tuple[Any, ...] = (
    None,
    True,
    "",
    "x",
    "../../..",
    "line\nbreak",
    "\x1b[31m",
    "a\0b",
    "\ud800",
    [],
    {},
    [[]],
    [None],
    {"": None},
    -1,
    0,
    1,
    3,
    1.5,
    -0.0,
    1e308,
    10**9,
    2**31,
    2**63,
    2**64,
    -(2**63),
    10**30,
    float("nan"),
    float("inf"),
    -float("inf"),
    "nan",
    "1",
    "/etc/passwd",
    "x" * 10_000,
)
_RAW = ("1e999", "1" * 5_000, "[" * 2_000 + "]" * 2_000, '{"a":' * 900 + "1" + "}" * 900, "-", "tru", "0x10", "\u2028")
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "F4", "X", "")


def by_format(rng: Random, file: Path) -> str:
    """Damage a file as its format would have it; "" where it has none that is known here, or holds nothing."""
    way = _FORMATS.get(file.suffix.lower())
    if way is None:
        return ""
    data = file.read_bytes()
    changed = way(rng, data)
    if changed is None or changed == data:
        return ""
    file.write_bytes(changed)
    return f"odd {file.suffix.lower().lstrip('.')}"


# JSON


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        if len(found) < 2_000:
            found += _places(inner, (*path, name))
    return found


def _oddly(rng: Random, value: Any) -> Any:
    """Something else than a value, perhaps like it."""
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.4:
        return rng.choice((-value, value + 1, value - 1, value * 1_000_003, value / 3, str(value), [value]))
    if isinstance(value, list) and value and rng.random() < 0.4:
        return rng.choice((value[:-1], value * 2, value[::-1], [*value, None], {"0": value[0]}))
    return deepcopy(rng.choice(_ODD))


def change(rng: Random, value: Any) -> Any:
    """A value of JSON with something in it removed, replaced, renamed or moved."""
    places = _places(value)
    path = rng.choice(places[1:] or places)
    if not path:
        return _oddly(rng, value)
    holder = value
    for name in path[:-1]:
        holder = holder[name]
    name = path[-1]
    way = rng.choice(("odd", "odd", "odd", "removed", "renamed", "from elsewhere"))
    if way == "removed":
        del holder[name]
    elif way == "renamed" and isinstance(holder, dict):
        holder[rng.choice(("", "x", name.upper(), f"{name}.weight", "__class__", "a\nb"))] = holder.pop(name)
    elif way == "from elsewhere":
        other = value
        for step in rng.choice(places):
            other = other[step]
        holder[name] = json.loads(json.dumps(other))
    else:
        holder[name] = _oddly(rng, holder[name])
    return value


def _json(rng: Random, data: bytes) -> bytes | None:
    try:
        value = json.loads(data)
    except ValueError:
        return None
    for _ in range(rng.choice((1, 1, 1, 3))):
        value = change(rng, value)
    text = json.dumps(value)
    if rng.random() < 0.15 and isinstance(value, dict) and value:
        text = json.dumps(value | {rng.choice(list(value)): "#raw#"}).replace('"#raw#"', rng.choice(_RAW))
    return text.encode()


def _lines(rng: Random, data: bytes) -> bytes | None:
    lines = data.splitlines(keepends=True)
    if not lines:
        return None
    at = rng.randrange(len(lines))
    way = rng.choice(("odd", "odd", "removed", "doubled", "moved", "raw"))
    if way == "odd":
        lines[at] = (_json(rng, lines[at]) or b"null") + b"\n"
    elif way == "removed":
        del lines[at]
    elif way == "doubled":
        lines.insert(at, lines[at])
    elif way == "moved":
        lines.append(lines.pop(at))
    else:
        lines[at] = rng.choice((*_RAW, "null", "[]", "1", "{}", '"x"')).encode() + b"\n"
    return b"".join(lines)


# TOML


def _toml(rng: Random, data: bytes) -> bytes | None:
    lines = data.decode("utf-8", "replace").splitlines()
    told = [index for index, line in enumerate(lines) if "=" in line and not line.startswith("#")]
    if not told:
        return None
    at = rng.choice(told)
    name = lines[at].split("=")[0].strip()
    way = rng.choice(("odd", "odd", "odd", "removed", "doubled", "renamed", "raw"))
    if way == "removed":
        del lines[at]
    elif way == "doubled":
        lines.insert(at, lines[at])
    elif way == "renamed":
        lines[at] = lines[at].replace(name, rng.choice((f"{name}s", '"a\\nb"', '""', "x.y", name.upper())))
    elif way == "raw":
        lines[at] = f"{name} = " + rng.choice((*_RAW, "0x" + "f" * 5_000, "1979-05-27", "nan", "[[1]]", "''' "))
    else:
        odd = rng.choice([value for value in _ODD if isinstance(value, str | int | float | list) and value != "\ud800"])
        lines[at] = f"{name} = " + (repr(odd) if isinstance(odd, float) else json.dumps(odd, ensure_ascii=False))
    return "\n".join(lines).encode()


# safetensors


def _safetensors(rng: Random, data: bytes) -> bytes | None:
    if len(data) < 10:
        return None
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError:
        return None
    body = data[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    if not names:
        return None
    way = rng.choice((_entry, _whole_entry, _numbers, _named, _metadata, _raw_header, _length))
    return way(rng, header, rng.choice(names), body)


def _packed(header: dict[str, Any] | bytes, body: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return ((len(text) if length is None else length) % 2**64).to_bytes(8, "little") + text + body


def _entry(rng: Random, header: dict[str, Any], name: str, body: bytes) -> bytes:
    """What the header says of one tensor, not fitting its bytes."""
    own = header[name]
    start, end = own["data_offsets"]
    own[rng.choice(("shape", "data_offsets", "dtype"))] = rng.choice(
        (
            [],
            [2**62, 2**62],
            [0],
            [-1],
            [2**63],
            [1] * 100,
            [start, 2**60],
            [end, start],
            [-8, end],
            [0.5],
            rng.choice(_DTYPES),
            deepcopy(rng.choice(_ODD)),
        )
    )
    return _packed(header, body)


def _whole_entry(rng: Random, header: dict[str, Any], name: str, body: bytes) -> bytes:
    """A header that fits, of a tensor of another shape, dtype or place."""
    own = header[name]
    start, end = own["data_offsets"]
    size = end - start
    if rng.random() < 0.4:
        own["dtype"], own["shape"] = rng.choice(
            (
                ("U8", [size]),
                ("I8", [size]),
                ("BOOL", [size]),
                ("F16", [size // 2]),
                ("I32", [size // 4]),
                ("F32", [1, size // 4]),
            )
        )
    elif rng.random() < 0.5:
        own["shape"] = rng.choice((own["shape"][::-1], [*own["shape"], 1], [1, *own["shape"]], [size // 4]))
    else:  # One of nothing: its bytes go, and those behind it move.
        own["shape"], own["data_offsets"] = [0, *own["shape"][1:]], [start, start]
        body = body[:start] + body[end:]
        for other in header.values():
            offsets = other.get("data_offsets")
            if offsets and other is not own and offsets[0] >= end:
                other["data_offsets"] = [offset - size for offset in offsets]
    return _packed(header, body)


def _numbers(rng: Random, header: dict[str, Any], name: str, body: bytes) -> bytes:
    """A tensor that is not finite, or beyond all bounds."""
    start, end = header[name]["data_offsets"]
    number = struct.pack("<f", rng.choice((float("nan"), float("inf"), -1e38, 3e38, 0.0)))
    count = (end - start) // 4
    some = count if rng.random() < 0.5 else min(count, 1)
    return _packed(header, body[:start] + number * some + body[start + 4 * some :])


def _named(rng: Random, header: dict[str, Any], name: str, body: bytes) -> bytes:
    header[rng.choice(("", "x", "a\nb", name + ".x", "../x", "unet.", "embedding.", "\x1b[31m", "weight" * 999))] = (
        header.pop(name)
    )
    return _packed(header, body)


def _metadata(rng: Random, header: dict[str, Any], name: str, body: bytes) -> bytes:
    own = header.get("__metadata__", {})
    for key, text in list(own.items()):
        if rng.random() < 0.8 and (inner := _json(rng, text.encode())):
            own[key] = inner.decode()
        elif rng.random() < 0.5:
            own[key] = rng.choice(("", "null", "[]", "{}", "1", "[" * 100_000))
    if not own or rng.random() < 0.2:
        own = rng.choice((None, [], {"format": 1}, {"format": "tf"}, {"format": "pt", "x": "y" * 10_000}))
    return _packed(header | {"__metadata__": own}, body)


def _raw_header(rng: Random, header: dict[str, Any], name: str, body: bytes) -> bytes:
    text = json.dumps(header)
    raw = rng.choice(_RAW)
    changed = rng.choice((text[:-1] + f', "x": {raw}}}', text[:-1] + ", " + text[1:], raw, text + raw, "{}", "null"))
    return _packed(changed.encode(), body)


def _length(rng: Random, header: dict[str, Any], name: str, body: bytes) -> bytes:
    return _packed(header, body, rng.choice((0, 1, 7, 2**20, 2**31, 2**63, -1, -8, 10**8)))


_FORMATS: dict[str, Callable[[Random, bytes], bytes | None]] = {
    ".json": _json,
    ".jsonl": _lines,
    ".toml": _toml,
    ".safetensors": _safetensors,
    **dict.fromkeys((".png", ".jpg", ".webp", ".gif", ".tif"), odd_picture),
}
