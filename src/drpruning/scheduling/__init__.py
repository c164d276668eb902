"""Which data next: worst-case ratios, loss forecasts and policies; numpy and scipy only."""

from drpruning.common.policy_settings import DEFAULT_SETTINGS, PAPER_SETTINGS
from drpruning.scheduling.ado import ADO
from drpruning.scheduling.baselines import Constant, CVaR, Equal, GroupDRO, Sheared
from drpruning.scheduling.decision import Decision, Explanation
from drpruning.scheduling.domain_changes import change_domains
from drpruning.scheduling.dro_policies import DRPruning, NaiveDRO
from drpruning.scheduling.forecast import MIN_POINTS, LossForecast, fit_loss_curves
from drpruning.scheduling.policy import Policy
from drpruning.scheduling.registry import POLICY_NAMES, make_policy, policy_settings
from drpruning.scheduling.size_law import SizeLaw, fit_size_law
from drpruning.scheduling.worst_case import divergence, project_to_bounds, worst_case_ratio

__all__ = [
    "ADO",
    "DEFAULT_SETTINGS",
    "MIN_POINTS",
    "PAPER_SETTINGS",
    "POLICY_NAMES",
    "CVaR",
    "Constant",
    "DRPruning",
    "Decision",
    "Equal",
    "Explanation",
    "GroupDRO",
    "LossForecast",
    "NaiveDRO",
    "Policy",
    "Sheared",
    "SizeLaw",
    "change_domains",
    "divergence",
    "fit_loss_curves",
    "fit_size_law",
    "make_policy",
    "policy_settings",
    "project_to_bounds",
    "worst_case_ratio",
]
