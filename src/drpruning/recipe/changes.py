"""How two recipes differ in the settings that decide the results of a run."""

from typing import Any

from drpruning.recipe.schema import Recipe

_FREE = {
    "micro_batch", "compile", "gradient_checkpointing", "checkpoint", "attention", "liger",
    "parallelism", "rank_timeout", "skip_limit",
}  # fmt: skip
_ORIGIN = {"like", "params"}
_OF_FILES = {"dtype", "max_shard_size"}


def fixed_settings(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain JSON values, without the settings that may change when a run is resumed."""
    return recipe.model_dump(
        mode="json",
        exclude={
            "output": True,
            "model": {
                **dict.fromkeys(_OF_FILES, True),
                "target": _ORIGIN,
                "targets": {"__all__": _ORIGIN},
            },
            "data": {"workers", "prepared"},
            "training": _FREE,
        },
    )


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
                current.get(key), saved.get(key), f"{place}.{key}" if place else str(key)
            )
        ]
    return [] if current == saved else [f"{place} (saved {saved!r}, now {current!r})"]
