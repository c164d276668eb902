"""The policies by name, as recipes name them."""

import inspect
from collections.abc import Mapping
from typing import Any

from drpruning.common.errors import BadInput
from drpruning.common.policy_settings import PAPER_SETTINGS
from drpruning.scheduling.ado import ADO
from drpruning.scheduling.baselines import Constant, CVaR, Equal, GroupDRO, Sheared
from drpruning.scheduling.dro_policies import DRPruning, NaiveDRO
from drpruning.scheduling.policy import Policy

_POLICIES = {
    policy.name: policy
    for policy in (DRPruning, NaiveDRO, Sheared, Constant, Equal, GroupDRO, CVaR, ADO)
}
POLICY_NAMES = tuple(_POLICIES)
PRESET = "reference"
"""The option of `make_policy` whose value `paper` makes the paper's settings the defaults."""


def policy_settings(name: str) -> tuple[str, ...]:
    """List the names of a policy's settings, which `make_policy` takes as options.

    Those of drpruning include `reference`, the name of a set of defaults.

    Raises:
        ValueError: If there is no such policy.
    """
    if name not in _POLICIES:
        raise BadInput(f"there is no policy {name!r}; choose one of {', '.join(POLICY_NAMES)}")
    parameters = inspect.signature(_POLICIES[name]).parameters.values()
    settings = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
    return (*settings, PRESET) if name == DRPruning.name else settings


def make_policy(
    name: str,
    initial_ratio: Mapping[str, float],
    total_steps: int,
    final_params: float | None = None,
    **options: Any,
) -> Policy:
    """Make the policy of this name with these settings.

    Args:
        name: One of drpruning, naive_dro, sheared, constant, equal, group_dro, cvar, ado.
        initial_ratio: Share of each domain at the start; sums to 1.
        total_steps: Length of training, in optimizer steps.
        final_params: Number of parameters at the end of training, if it changes.
        **options: Settings of that policy, see its class. For drpruning also `reference="paper"`:
            the settings that are not given are then the paper's (`PAPER_SETTINGS`).

    Raises:
        ValueError: If the name or an option is not known, or a value is not valid.
    """
    known = policy_settings(name)
    if unknown := [option for option in options if option not in known]:
        raise BadInput(
            f"the policy {name} has no setting {', '.join(unknown)}; "
            f"it has {', '.join(known) or 'none'}"
        )
    preset = options.pop(PRESET, None)
    if preset not in (None, "paper"):
        raise BadInput(f"reference must be paper, or absent, not {preset!r}")
    if preset == "paper":
        options = {**PAPER_SETTINGS, **options}
    return _POLICIES[name](initial_ratio, total_steps, final_params, **options)
