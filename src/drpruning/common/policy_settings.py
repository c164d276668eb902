"""The settings of DRPruning, for its class and for recipes: the defaults, and the paper's."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from drpruning.common.shares import INITIAL_OR_EQUAL, SMALLEST_REFERENCE

DEFAULT_SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "rho": 0.5,
        "floor": INITIAL_OR_EQUAL,
        "relative_floor": 0.0,
        "tau": 0.2,
        "loss_weight": 1.0,
        "forecast": "combine",
        "forecast_at": "equal",
        "transfer": 0.0,
        "forecast_start": 0.2,
        "min_quality": 0.0,
        "reference_rule": "latest",
        "moving_reference": True,
        "reference_start": 0.1,
        "delta": 0.1,
        "bound": 7.0,
    }
)
"""Setting of `DRPruning` -> its default. Only `reference_loss` is not among them: it has none."""

PAPER_SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "rho": 0.1,
        "floor": SMALLEST_REFERENCE,  # section 3.3
        "relative_floor": 0.0,
        "tau": 0.0,
        "loss_weight": 1.0,
        "forecast": "replace",
        "forecast_at": "present",
        "transfer": 0.0,  # of no effect on present forecasts
        "forecast_start": 0.2,
        "min_quality": 0.0,
        "reference_rule": "minimum",
        "moving_reference": True,
        "reference_start": 0.4,
        "delta": 0.1,
        "bound": 2.0,
    }
)
"""Setting -> its value in the paper (arXiv 2411.14055, sections 2.2 and 3)."""
