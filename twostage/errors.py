"""The one exception that means "the user can fix this"."""


class UserError(ValueError):
    """What is wrong, where, the value, and what to do, in one line.

    The command line prints it without a traceback and exits with code 2. Everything else that
    escapes is a bug of ours.
    """
