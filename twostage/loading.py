"""What the libraries say of files that are not what they expected, told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from twostage.errors import UserError
from twostage.lack import lacks_memory
from twostage.quiet import quiet

# They have no common class for it: a value of another type fails wherever it is first counted on.
_UNEXPECTED = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)
_LONGEST = 300


@contextmanager
def loading(what: object, remedy: str = "get it anew") -> Iterator[None]:
    """Within it a library reads files of somebody else's, quietly.

    Args:
        what: it reads, for the message: the folder.
        remedy: what to do about it.

    Raises:
        UserError: they are missing, broken, or not what the library expects.
    """
    with quiet():
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            # Its very class is what `tokenizers` raises, having none of its own.
            known = isinstance(error, _UNEXPECTED) or type(error) is Exception
            if not known or lacks_memory(error):
                raise
            raise UserError(f"cannot load {what}: {reason_of(error)}; {remedy}") from error


def reason_of(error: BaseException) -> str:
    """What a library's error says, in one line of reasonable length."""
    told = " ".join(str(error).split())
    # A name that was looked up tells nothing without what was looked for.
    bare = type(error).__name__ if not told or isinstance(error, KeyError | AttributeError) else ""
    return ": ".join(filter(None, (bare, told[:_LONGEST])))
