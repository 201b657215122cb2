"""The exceptions that need no traceback: what is wrong, and what to do about it."""

RESUME = 75
"""Exit status EX_TEMPFAIL: nothing is lost but the work since the last save; run the same command again."""


class UserError(Exception):
    """Bad input from the person at the keyboard, or a machine that cannot do what was asked.

    The message names the thing, the value given, what is allowed, and the next action. Commands print it
    without a traceback and exit with `status`.
    """

    status = 2


class RunFailed(UserError):
    """Training cannot go on, and running the same command again would end here again."""

    status = 3
