"""The recipe of nearly all runs in tests; it needs nothing but the two folders."""

from pathlib import Path
from typing import Any


def small_recipe(model: Path, text: Path, output: Path) -> dict[str, Any]:
    """A recipe that runs in seconds: both phases, three domains.

    Args:
        model: Folder of the fixture `model_folder`.
        text: Folder of the fixture `text_folder`.
        output: The run folder to be.
    """
    shares = {"numbers": 0.6, "colours": 0.3, "animals": 0.1}
    return {
        "model": {
            "source": str(model),
            "target": {
                "num_layers": 2,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_heads": 2,
            },
        },
        "data": {
            "root": str(text),
            "sequence_length": 16,
            "validation_blocks": 6,
            "workers": 1,
            "domains": {
                name: {"source": f"{name}.jsonl", "share": share} for name, share in shares.items()
            },
        },
        "prune": {
            "steps": 20,
            "global_batch": 8,
            "evaluate_every": 2,
            "learning_rate": 1e-2,
            "mask_samples": 2,
        },
        "pretrain": {"steps": 12, "global_batch": 8, "evaluate_every": 2, "learning_rate": 1e-2},
        "training": {
            "micro_batch": 4,
            "precision": "fp32",
            "log_every": 3,
            "checkpoint": {"every_steps": 5},
        },
        "output": str(output),
    }
