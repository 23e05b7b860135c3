"""The error for a mistake of the user, which commands print without a traceback."""


class UsageError(ValueError):
    """What was asked for, or a file that was given, cannot be; the message says why.

    Commands print it as one line and exit with 2. Any other ValueError is a fault of
    this package and shows its traceback.
    """
