"""The one exception that means "the user can fix this", and text that a terminal and a log may be given."""

from __future__ import annotations

import os
import re

# A login in an address, as in s3://key:secret@bucket, and what a query calls by such names.
_LOGIN = re.compile(r"(?<=://)(?:[^\s'\"@:/]*:[^\s'\"@]*|[^\s'\"@:/]+)@")
_QUERY = re.compile(r"(?i)([?&][\w-]*(?:token|key|secret|sig|password|credential)[\w-]*=)[^&\s'\"]+")
# Variables that hold one; a short value would be found in any text.
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|PASSWD")
_SHORTEST = 8


class UserError(ValueError):
    """What is wrong, where, the value, and what to do, in one line.

    The command line prints it without a traceback and exits with code 2. Everything else that
    escapes is a bug of ours. It holds no secret and nothing that a terminal would obey.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shown(message))


def printable(value: object) -> str:
    """One line that any terminal takes: a name may hold line breaks and bytes that are no text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def shown(text: str) -> str:
    """Text as a terminal or a log may have it: without secrets, and nothing in it but lines and tabs to be obeyed."""
    safe = without_secrets(text)
    return safe if safe.isprintable() else "".join(c if c in "\n\t" else printable(c) for c in safe)


def without_secrets(text: str) -> str:
    """Text with *** in the place of a login in an address, and of what secret variables of the environment hold."""
    text = _QUERY.sub(r"\1***", _LOGIN.sub("***@", text))
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and _SECRET.search(name) and not os.path.exists(value):
            text = text.replace(value, "***")
    return text
