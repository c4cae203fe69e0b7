"""The error a person can act on."""


class UserError(ValueError):
    """A mistake in what the user gave, told as: where, what was expected, what was found, how to mend it.

    The command line prints the message without a traceback and exits with `exit_code`. All else is a bug of ours.
    """

    exit_code = 2


class StoppedError(UserError):
    """The run was asked to stop and has saved itself; the same command resumes it (exit code 75, "call me again")."""

    exit_code = 75


class RankLostError(UserError):
    """Another process of the run is gone. The last checkpoint is whole."""

    exit_code = 74


class DoesNotFitError(UserError):
    """The run does not fit, or no longer fits; the last checkpoint is whole. Says what to change."""

    exit_code = 3
