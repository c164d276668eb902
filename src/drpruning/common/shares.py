"""Smallest shares of domains that follow from their initial ratio."""

import math
from collections.abc import Mapping
from typing import Literal

INITIAL_OR_EQUAL: Literal["initial_or_equal"] = "initial_or_equal"
"""The floor that keeps for every domain its initial share or an equal one, the smaller of both."""
SMALLEST_REFERENCE: Literal["smallest_reference"] = "smallest_reference"
"""The floor that moves with the reference ratio: the smallest share in it (paper, section 3.3)."""
MOST_KEPT = 0.6
"""Part of the data, at most, that `INITIAL_OR_EQUAL` keeps; the rest can be steered."""


def initial_or_equal(ratio: Mapping[str, float]) -> dict[str, float]:
    """Find the smallest share of each domain: its initial or an equal share, the smaller of both.

    So data are taken from a domain only as far as it has more than its equal share. Where that
    would keep more than `MOST_KEPT` of all data, as with shares that are even already, every floor
    is scaled down to keep that much.

    Args:
        ratio: Initial share of each domain; sums to 1.
    """
    equal = 1 / len(ratio)
    kept = {name: min(share, equal) for name, share in ratio.items()}
    scale = min(1.0, MOST_KEPT / math.fsum(kept.values()))
    return {name: scale * share for name, share in kept.items()}
