"""The error a person can act on."""


class UserError(ValueError):
    """A mistake in what the user gave, told as: where, what was expected, what was found, how to mend it.

    The command line prints the message without a traceback and exits with code 2. Everything else is a bug of ours.
    """
