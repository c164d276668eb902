"""JSON that every reader takes (NaN and infinities are null), and reading it."""

import json
import math
from collections.abc import Mapping
from typing import Any


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text stands for.

    Raises:
        ValueError: It is no JSON, no UTF-8, or nested too deeply.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError:
        raise ValueError("it is no UTF-8 text") from None
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None
    except ValueError:  # Python's limit for whole numbers
        raise ValueError("a number has more than 4,300 digits") from None


def dumps(value: Any, indent: int | None = None) -> str:
    """The value as JSON; numbers keep every bit, those that are not finite become null."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)
