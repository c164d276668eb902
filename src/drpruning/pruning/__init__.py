"""Which parts of a model stay: shapes, masks with their constraints, plans, surgery.

Masks give scores, a `PruningPlan` says what stays, surgery applies the plan. Names are imported on
first use, so that shapes and families work without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drpruning.pruning.families import FAMILIES, Family
    from drpruning.pruning.importance import initialise_masks, taylor_importance
    from drpruning.pruning.masked_model import ExportError, MaskedModel, attach_masks
    from drpruning.pruning.plan import PruningPlan
    from drpruning.pruning.shape_search import Proposal, propose_shapes
    from drpruning.pruning.shapes import ModelShape
    from drpruning.pruning.surgery import apply_plan

_MODULES = {
    "FAMILIES": "families",
    "Family": "families",
    "ModelShape": "shapes",
    "Proposal": "shape_search",
    "propose_shapes": "shape_search",
    "PruningPlan": "plan",
    "apply_plan": "surgery",
    "attach_masks": "masked_model",
    "initialise_masks": "importance",
    "taylor_importance": "importance",
    "ExportError": "masked_model",
    "MaskedModel": "masked_model",
}

__all__ = [
    "FAMILIES",
    "ExportError",
    "Family",
    "MaskedModel",
    "ModelShape",
    "Proposal",
    "PruningPlan",
    "apply_plan",
    "attach_masks",
    "initialise_masks",
    "propose_shapes",
    "taylor_importance",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
