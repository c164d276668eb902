"""Which reference loss is in force, and where it comes from, in words."""

import math

from drpruning.runs.lines import EvalPoint
from drpruning.scheduling import Decision, Explanation

ORIGINS = {
    "given": "given",
    "source": "loss of the source model",
    "forecast": "forecast",
    "smallest loss": "smallest loss so far",
}
"""Where a reference loss comes from (`Explanation.reference_origin`) -> the same for people."""


def is_combined(point: Decision | EvalPoint, domain: str) -> bool:
    """Whether a domain's excess goes by its reference loss and by its forecast.

    So it is where forecasts do not become reference losses (`forecast: combine`): an origin of
    another kind stays beside a forecast that is used.
    """
    explanation = point.explanation
    return (
        explanation.reference_origin.get(domain) in {"given", "source"}
        and domain not in explanation.refused
        and math.isfinite((point.forecast or {}).get(domain, math.nan))
    )


def basis_text(point: Decision | EvalPoint, domain: str, *, with_share: bool = True) -> str:
    """What a domain's excess goes by: its reference loss, and its forecast where both count.

    Args:
        point: The evaluation.
        domain: Its name.
        with_share: Whether to say which share a forecast is for.
    """
    origin = point.explanation.reference_origin.get(domain, "")
    text = ORIGINS.get(origin, origin)
    combined = is_combined(point, domain)
    share = _share_text(point.explanation, domain) if with_share else ""
    if combined:
        return f"{text}, and forecast{share}"
    return f"{text}{share}" if origin == "forecast" else text


def _share_text(explanation: Explanation, domain: str) -> str:
    share = explanation.forecast_share.get(domain)
    return ", over steps" if share is None else f" at a share of {share:.2%}"


def origins(explanation: Explanation) -> dict[str, list[str]]:
    """Where reference losses come from -> the domains, in the order of the log."""
    found: dict[str, list[str]] = {}
    for name, origin in explanation.reference_origin.items():
        share = _share_text(explanation, name) if origin == "forecast" else ""
        found.setdefault(f"{ORIGINS.get(origin, origin)}{share}", []).append(name)
    return found


def bases(point: Decision | EvalPoint) -> dict[str, list[str]]:
    """What the excess goes by -> the domains, in the order of the log."""
    found: dict[str, list[str]] = {}
    for name in point.explanation.reference_origin:
        found.setdefault(basis_text(point, name), []).append(name)
    return found
