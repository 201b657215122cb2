"""The one exception that means: the input is wrong, and here is what to change."""


class UserError(Exception):
    """Bad input from the person at the keyboard.

    The message names the thing, the value given, what is allowed, and the next action. Commands print it
    without a traceback and exit with status 2.
    """
