"""The exceptions of which the command line prints the message alone."""


class BadInput(ValueError):  # noqa: N818 - named for what the user is told, not for Python
    """Something the user gave cannot work; the message names it and says what to write instead.

    The command line prints the message alone and leaves with status 2.
    """


class TrainingFailed(RuntimeError):  # noqa: N818 - what happened, as the others are named
    """Training cannot go on; what was saved stands. The command line leaves with status 1."""
