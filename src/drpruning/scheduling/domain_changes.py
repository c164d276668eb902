"""Changes of the set of domains in the middle of a run: some are added, some removed."""

import copy
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from drpruning.common.errors import BadInput


def change_domains(
    state: Mapping[str, Any],
    initial_ratio: Mapping[str, float],
    reference_loss: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Convert a policy's state for another set of domains, to be loaded by a policy made for these.

    Domains in both sets keep their loss history and reference loss, and divide what the new ones
    leave in proportion to their shares so far; they also keep the data that they have had. A new
    domain starts with its initial share, no data and no history, and with the reference loss given
    here, or else that of the policy that loads the state. As long as one domain has none, the ratio
    stays; so next to reference losses that are given or the source model's, which forecasts do not
    replace by default, a new domain needs its own. A removed domain leaves its share to the others.

    Args:
        state: What `state_dict` of any policy gave.
        initial_ratio: Initial share of each domain from now on; sums to 1.
        reference_loss: Reference losses of new domains, in nats.

    Returns:
        The changed state; the one given stays as it is.

    Raises:
        ValueError: If no domain stays, or a reference loss is of a domain that is not new.
    """
    changed = copy.deepcopy(dict(state))
    before = state["ratio"]
    kept = [d for d in initial_ratio if d in before]
    new = {d: float(share) for d, share in initial_ratio.items() if d not in before}
    _check(initial_ratio, before, kept, new, reference_loss or {})
    left = 1 - sum(new.values())
    for name in ("ratio", "reference_ratio"):
        if name in state:
            total = sum(state[name][d] for d in kept)
            scaled = {d: left * _share(state[name][d], total, len(kept)) for d in kept}
            changed[name] = {d: {**scaled, **new}[d] for d in initial_ratio}
    if "log_ratio" in state:
        log_ratio = _rescaled_logarithms(state["log_ratio"], kept, left)
        log_ratio |= {d: math.log(share) for d, share in new.items()}
        changed["log_ratio"] = {d: log_ratio[d] for d in initial_ratio}
        changed["ratio"] = {d: math.exp(log) for d, log in changed["log_ratio"].items()}
    for name in ("reference_loss", "average_loss"):
        if name in state:
            known = {d: v for d, v in (state[name] or {}).items() if d in kept}
            added = dict(reference_loss or {}) if name == "reference_loss" else {}
            changed[name] = known | added or None
    if "reference_origin" in state:
        origins = {d: v for d, v in (state["reference_origin"] or {}).items() if d in kept}
        changed["reference_origin"] = origins | dict.fromkeys(reference_loss or {}, "given")
    if "data" in state:
        changed["data"] = {d: state["data"].get(d, 0.0) for d in initial_ratio}
    if "has_forecast" in state:
        changed["has_forecast"] = {d: state["has_forecast"].get(d, False) for d in initial_ratio}
    if "history" in state:
        evaluations = len(state["history"]["steps"])
        for name, before_it in (("losses", None), ("data", 0.0)):
            values, none = state["history"][name], [before_it] * evaluations
            changed["history"][name] = {d: list(values.get(d, none)) for d in initial_ratio}
    return changed


def _check(
    initial_ratio: Mapping[str, float],
    before: Iterable[str],
    kept: Collection[str],
    new: Collection[str],
    reference_loss: Mapping[str, float],
) -> None:
    """Refuse a change without kept domains, shares that are no ratio, losses of kept domains."""
    if not kept:
        raise BadInput(f"none of the domains {', '.join(before)} stays; make a new policy instead")
    shares = list(initial_ratio.values())
    if not all(0 < share < math.inf for share in shares) or abs(math.fsum(shares) - 1) > 1e-6:
        raise BadInput("initial_ratio must be positive everywhere and sum to 1")
    for name, loss in reference_loss.items():
        if name not in new:
            raise BadInput(f"reference_loss: {name} is not a new domain")
        if not math.isfinite(loss):
            raise BadInput(f"reference_loss of {name} must be finite, not {loss}")


def _share(share: float, total: float, count: int) -> float:
    return share / total if total > 0 else 1 / count


def _rescaled_logarithms(
    log_ratio: Mapping[str, float], kept: Sequence[str], total: float
) -> dict[str, float]:
    """Logarithms of the shares of the kept domains, which then sum to `total`.

    They also say how shares that are all 0 in float64 compare.
    """
    logs = np.array([log_ratio[d] for d in kept])
    logs -= logs.max()  # first, as logarithms of 1e308 would absorb what is added to them
    logs += math.log(total) - np.logaddexp.reduce(logs)
    return dict(zip(kept, logs.tolist(), strict=True))
