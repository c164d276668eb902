"""What the saved state of a phase belongs to: prepared data, and what its recipe decides."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from drpruning.common.console import Reporter
from drpruning.common.errors import BadInput
from drpruning.data import Mixture, PreparedData, TokenBlocks
from drpruning.data.fingerprint import identity_differences
from drpruning.recipe import Recipe
from drpruning.recipe.changes import differences, fixed_settings

_SAMPLED_BLOCKS = 16


def data_identity(data: PreparedData) -> dict[str, Any]:
    """Prepared data as plain JSON values that differ where its blocks do.

    The blocks themselves count by their number and a sample, so that files which are exchanged
    under a manifest are found too.
    """
    return {
        "fingerprint": data.fingerprint,
        "domains": {
            name: {"train": _blocks(domain.train), "validation": _blocks(domain.validation)}
            for name, domain in data.domains.items()
        },
    }


def run_identity(recipe: Recipe, data: PreparedData, phase: str) -> dict[str, Any]:
    """What decides the course of a phase, but for the model, as plain JSON values.

    The weights in a checkpoint speak for the model, and its source may have moved.
    """
    settings = fixed_settings(recipe)
    parts = ("scheduling", phase, "training")
    return {"data": data_identity(data), "recipe": {part: settings[part] for part in parts}}


def check_identity(
    place: Path,
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    *,
    accept: bool,
    reporter: Reporter,
) -> None:
    """Refuse a saved state of another recipe or other data, or say what has changed.

    Args:
        place: What was read, for the message.
        there: The identity in it; parts that it does not have are not compared.
        here: The identity of this start.
        accept: Go on all the same, with a warning (`training.checkpoint.accept_changes`).
        reporter: Is given the warning.

    Raises:
        BadInput: They differ and `accept` is false.
    """
    found = []
    if "data" in there and there["data"] != here["data"]:
        found += identity_differences(there["data"], here["data"], part="{} blocks") or [
            "the sources, tokenizer or settings of the prepared data"
        ]
    if "recipe" in there:
        found += differences(here["recipe"], there["recipe"])
    if not found:
        return
    if not accept:
        raise BadInput(
            f"{place} was saved with another recipe or other data ({'; '.join(found[:5])}); put "
            "these back, begin in another folder, or go on all the same with "
            "`--set training.checkpoint.accept_changes=true`"
        )
    reporter.warn(f"going on from {place} although there are changes: {'; '.join(found)}")


def restore_mixture(mixture: Mixture, saved: Mapping[str, Any], *, accept: bool) -> None:
    """Put a mixture where a saved one of the same data and settings stood.

    Args:
        mixture: At the start of its data.
        saved: The other one's `state_dict`.
        accept: Other data, batch size or seed will do: then the data is read from its start.

    Raises:
        ValueError: The saved state does not fit, and `accept` is false.
    """
    try:
        mixture.load_state_dict(saved)
    except ValueError:
        if not accept:
            raise
        mixture.load_state_dict({**mixture.state_dict(), "step": saved["step"]})


def _blocks(blocks: TokenBlocks) -> dict[str, Any]:
    last = len(blocks) - 1
    ids = np.unique(np.linspace(0, max(last, 0), _SAMPLED_BLOCKS).astype(np.int64)[: last + 1])
    sample = hashlib.blake2b(blocks[ids].tobytes(), digest_size=16).hexdigest()
    return {"blocks": len(blocks), "sample": sample}
