"""The one exception that means "the user can fix this"."""


class UserError(ValueError):
    """What is wrong, where, the value, and what to do, in one line.

    The command line prints it without a traceback and exits with code 2. Everything else that
    escapes is a bug of ours.
    """


def printable(value: object) -> str:
    """One line that any terminal takes: a name may hold line breaks and bytes that are no text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))
