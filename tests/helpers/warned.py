"""The warnings that the package has logged."""

import logging

import pytest


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The messages of the loggers `drpruning.*`, in order; torch logs as well."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("drpruning.") and record.levelno >= logging.WARNING
    ]
