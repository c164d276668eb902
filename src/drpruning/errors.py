"""The one exception that means "the input is wrong"."""


class BadInput(ValueError):  # noqa: N818 - named for what the user is told, not for Python
    """Something the user gave cannot work; the message names it and says what to write instead.

    The command line prints the message alone and leaves with status 2.
    """
