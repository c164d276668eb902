"""The exceptions of which the command line prints the message alone."""

LONGEST_SHOWN = 100
"""Characters of a value in a message."""


class BadInput(ValueError):  # noqa: N818 - named for the user, not for Python
    """Something the user gave cannot work; the message names it and says what to write instead.

    The command line prints the message alone and exits with status 2.
    """


class FolderLocked(BadInput):
    """Another process works in a folder; nothing in it is this one's to remove."""


class TrainingError(RuntimeError):
    """Training cannot continue; what was saved remains. The command line exits with status 1."""


class EvaluationIncomplete(RuntimeError):  # noqa: N818 - the rest was done
    """Some of what was to be measured could not be. The command line exits with status 1."""


def shown(value: object) -> str:
    """Quote a value for a message: its `repr`, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


class Interrupted(Exception):  # noqa: N818 - not an error
    """Training stopped because a signal asked for it; everything is saved."""
