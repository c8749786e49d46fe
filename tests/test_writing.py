"""Files are there whole or not at all, whoever writes them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from twostage.errors import UserError
from twostage.writing import remove_folder, whole_file, whole_folder, writing


def test_two_that_write_the_same_file_at_once_leave_one_of_theirs(tmp_path: Path) -> None:
    final = tmp_path / "picture.png"
    with whole_file(final) as one, whole_file(final) as other:
        one.write_text("one")
        other.write_text("other")
    assert final.read_text() in ("one", "other")
    assert list(tmp_path.iterdir()) == [final]


def test_nothing_gets_its_name_before_its_bytes_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut would leave of a file that was renamed and not flushed is its name, and nothing in it."""
    done: list[str] = []

    def noted(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            target = args[-1] if what == "rename" else os.readlink(f"/proc/self/fd/{args[0]}")
            done.append(f"{what} {Path(target).name}")
            return function(*args)

        return call

    monkeypatch.setattr(os, "fsync", noted("flush", os.fsync))
    monkeypatch.setattr(os, "replace", noted("rename", os.replace))
    with whole_folder(tmp_path / "checkpoint") as folder:
        (folder / "weights").write_text("all")
    assert done == [
        "flush weights",
        "flush .writing-checkpoint",
        "rename checkpoint",
        f"flush {tmp_path.name}",
    ]
    done.clear()
    with whole_file(tmp_path / "facts") as file:
        file.write_text("all")
    assert done[0].startswith("flush .writing-") and done[1:] == ["rename facts", f"flush {tmp_path.name}"]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_one_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, replace = tmp_path / "unet", os.replace
    with whole_folder(final) as folder:
        (folder / "weights").write_text("old")

    def fails(source: Path, target: Path) -> None:
        if Path(source).name == ".writing-unet":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(UserError, match="Input/output error"), whole_folder(final) as folder:
        (folder / "weights").write_text("new")
    assert (final / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


def test_a_kill_between_two_names_of_a_folder_loses_neither(tmp_path: Path) -> None:
    (tmp_path / ".writing-over-unet").mkdir()
    (tmp_path / ".writing-over-unet" / "weights").write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "unet"):
        raise KeyboardInterrupt
    assert (tmp_path / "unet" / "weights").read_text() == "old"


def test_a_removed_folder_is_gone_before_what_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a kill half way leaves no half of it under its name."""
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "weights").write_text("all")

    def killed(path: Path, ignore_errors: bool = False) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_folder(tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_a_full_disk_is_told_with_what_it_takes_what_is_free_and_what_is_missing(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(UserError, match=r"\(it takes [\d,]+ bytes, [\d,]+ bytes are free, [\d,]+ are missing\)") as told,
        writing(tmp_path, free + 10**9),
    ):
        raise full
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match=r"\([\d,]+ bytes are free\)"), writing(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
