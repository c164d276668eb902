"""How two recipes differ in the settings that decide the results of a run."""

from typing import Any

from drpruning.recipe.distillation import OFF
from drpruning.recipe.schema import Recipe

_FREE = {
    "micro_batch", "compile", "gradient_checkpointing", "checkpoint", "attention", "liger",
    "parallelism", "rank_timeout", "skip_limit",
}  # fmt: skip
_FREE_OF_TEACHERS = {"shard", "cache"}
_ORIGIN = {"like", "params"}
_OF_FILES = {"dtype", "max_shard_size"}
_ABSENT = {"distill": OFF}
"""What a setting that `fixed_settings` leaves out stands for."""


def fixed_settings(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain JSON values, without the settings that may change when a run is resumed."""
    settings = recipe.model_dump(
        mode="json",
        exclude={
            "output": True,
            "evaluate": True,
            "model": {
                **dict.fromkeys(_OF_FILES, True),
                "target": _ORIGIN,
                "targets": {"__all__": _ORIGIN},
            },
            "data": {"workers", "prepared"},
            "training": _FREE,
        },
    )
    for phase in recipe.phases:
        distill = settings[phase].pop("distill")
        # Without a teacher the settings are those of versions that knew none.
        if recipe.distillation(phase) is not None:
            kept = {k: v for k, v in distill.items() if k not in _FREE_OF_TEACHERS}
            settings[phase]["distill"] = kept
    return settings


def portable_settings(recipe: Recipe) -> dict[str, Any]:
    """`fixed_settings` without the places of teachers, for a saved state that may be moved."""
    settings = fixed_settings(recipe)
    for phase in recipe.phases:
        if (distill := recipe.distillation(phase)) is not None:
            several = distill.teachers or {}
            settings[phase]["distill"] |= {
                "teacher": distill.teacher if distill.is_self else None,
                "teachers": list(several.values()) or None,
            }
    return settings


def written_as(recipe: Recipe) -> dict[str, Any]:
    """How models are written, which may change as long as one is still to be written."""
    return {"model": recipe.model.model_dump(mode="json", include=_OF_FILES)}


def differences(current: Any, saved: Any, place: str = "") -> list[str]:
    """Field by field, how two results of `fixed_settings` (or parts of them) differ."""
    if isinstance(current, dict) and isinstance(saved, dict):
        keys = dict.fromkeys([*current, *saved])
        return [
            line
            for key in keys
            for line in differences(
                current.get(key, _ABSENT.get(key)),
                saved.get(key, _ABSENT.get(key)),
                f"{place}.{key}" if place else str(key),
            )
        ]
    return [] if current == saved else [f"{place} (saved {saved!r}, now {current!r})"]
