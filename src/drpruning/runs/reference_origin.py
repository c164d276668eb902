"""Which reference loss is in force, and where it comes from, in words."""

from drpruning.scheduling import Explanation

ORIGINS = {
    "given": "given",
    "source": "loss of the source model",
    "forecast": "forecast",
    "smallest loss": "smallest loss so far",
}
"""Where a reference loss comes from (`Explanation.reference_origin`) -> the same for people."""


def origin_text(explanation: Explanation, domain: str) -> str:
    """Where a domain's reference loss comes from; empty where that is not known."""
    origin = explanation.reference_origin.get(domain, "")
    text = ORIGINS.get(origin, origin)
    if origin != "forecast":
        return text
    share = explanation.forecast_share.get(domain)
    return f"{text}, over steps" if share is None else f"{text} at a share of {share:.2%}"


def origins(explanation: Explanation) -> dict[str, list[str]]:
    """Where reference losses come from -> the domains, in the order of the log."""
    found: dict[str, list[str]] = {}
    for name in explanation.reference_origin:
        found.setdefault(origin_text(explanation, name), []).append(name)
    return found
