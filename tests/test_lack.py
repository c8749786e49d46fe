"""A lack of memory is told from every other mistake."""

from __future__ import annotations

import errno

import pytest
import torch

from twostage.lack import OutOfMemory, lacks_memory, told_of_lack


def _from_torch() -> None:
    torch.empty(1 << 55)


def _from_python() -> None:
    bytearray(1 << 60)


def _from_the_system() -> None:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def _on_a_card() -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def _hidden_by_a_library() -> None:
    try:
        _from_torch()
    except RuntimeError as error:
        raise OSError("Unable to load weights") from error


LACKS = [_from_torch, _from_python, _from_the_system, _on_a_card, _hidden_by_a_library]


@pytest.mark.parametrize("fail", LACKS)
def test_whoever_says_it_it_is_recognised_and_becomes_one_line(fail: object) -> None:
    assert callable(fail)
    with pytest.raises(OutOfMemory, match="out of it") as caught, told_of_lack("stage2", 2, "out of it"):
        fail()
    assert (caught.value.phase, caught.value.stage) == ("stage2", 2)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("could not create a primitive"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("Cannot allocate memory"),
        KeyError("memory"),
    ],
)
def test_other_errors_are_what_they_were(error: Exception) -> None:
    assert not lacks_memory(error)
    with pytest.raises(type(error)), told_of_lack("stage2", 2, "out of it"):
        raise error
