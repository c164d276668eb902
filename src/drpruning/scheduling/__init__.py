"""Which data next: worst-case ratios, loss forecasts and policies; numpy only."""

from drpruning.scheduling.baselines import Constant, CVaR, GroupDRO, Sheared
from drpruning.scheduling.dro import divergence, project_to_bounds, worst_case_ratio
from drpruning.scheduling.factory import POLICY_NAMES, make_policy
from drpruning.scheduling.forecast import MIN_POINTS, LossForecast, fit_loss_curves
from drpruning.scheduling.policy import Decision, Policy
from drpruning.scheduling.robust import DRPruning, NaiveDRO

__all__ = [
    "MIN_POINTS",
    "POLICY_NAMES",
    "CVaR",
    "Constant",
    "DRPruning",
    "Decision",
    "GroupDRO",
    "LossForecast",
    "NaiveDRO",
    "Policy",
    "Sheared",
    "divergence",
    "fit_loss_curves",
    "make_policy",
    "project_to_bounds",
    "worst_case_ratio",
]
