"""What the saved state of a phase belongs to: its prepared data and its recipe."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from drpruning.common.errors import BadInput
from drpruning.data import Mixture, PreparedData, TokenBlocks
from drpruning.data.fingerprint import identity_differences
from drpruning.recipe import Recipe
from drpruning.recipe.changes import differences, portable_settings

logger = logging.getLogger(__name__)

_SAMPLED_BLOCKS = 16


def data_identity(data: PreparedData) -> dict[str, Any]:
    """Plain JSON values that differ between data with different blocks.

    Blocks are represented by their number and a sample, so that files that were exchanged while
    the manifest stayed are found too.
    """
    return {
        "fingerprint": data.fingerprint,
        "domains": {
            name: {"train": _blocks(domain.train), "validation": _blocks(domain.validation)}
            for name, domain in data.domains.items()
        },
    }


def run_identity(recipe: Recipe, data: PreparedData, phase: str) -> dict[str, Any]:
    """Everything that decides the course of a phase except the models, as plain JSON values.

    The model is compared by the shapes of the weights in a checkpoint, since its source may move;
    so may teachers, of which settings and weights count.
    """
    settings = portable_settings(recipe)
    parts = ("scheduling", phase, "training")
    return {
        "data": data_identity(data),
        "recipe": {part: settings[part] for part in parts},
        "domains": {
            name: {"share": domain.share, "on_exhausted": domain.on_exhausted}
            for name, domain in recipe.data.domains.items()
        },
    }


def check_identity(
    place: Path,
    saved: Mapping[str, Any],
    own: Mapping[str, Any],
    *,
    accept: bool,
) -> list[str]:
    """Refuse a saved state of another recipe or other data, or warn of what has changed.

    Args:
        place: What was read, for the message.
        saved: The identity in it; parts that it does not have are not compared.
        own: The identity of this run.
        accept: Resume all the same, with a warning (`training.checkpoint.accept_changes`).

    Returns:
        How they differ, for people; empty where they do not.

    Raises:
        BadInput: They differ and `accept` is false.
    """
    found = []
    if "data" in saved and saved["data"] != own["data"]:
        found += identity_differences(saved["data"], own["data"], part="{} blocks") or [
            "the sources, tokenizer or settings of the prepared data"
        ]
    if "domains" in saved:
        found += differences(own["domains"], saved["domains"], "data.domains")
    if "recipe" in saved:
        found += differences(own["recipe"], saved["recipe"])
    if found and not accept:
        raise BadInput(
            f"{place} was saved with another recipe or other data ({'; '.join(found[:5])}); put "
            "these back, use another output folder, or resume all the same with "
            "`--set training.checkpoint.accept_changes=true`"
        )
    if found and PartialState().is_main_process:
        logger.warning("resuming from %s in spite of changes: %s", place, "; ".join(found))
    return found


def restore_mixture(mixture: Mixture, saved: Mapping[str, Any], *, accept: bool) -> None:
    """Restore the position of a mixture in its data.

    Args:
        mixture: At the start of its data.
        saved: The `state_dict` to restore.
        accept: Accept other data, batch size or seed; the data is then read from its start.

    Raises:
        ValueError: The saved state is of other data or settings, and `accept` is false.
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
