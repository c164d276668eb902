"""Run by torchrun in a test: trains, resumes in the middle of a segment, says what it saw."""

import json
import sys
from pathlib import Path
from typing import Any

from tiny_trainer import decisions, larger_model, prepared

from drpruning.integrations.transformers import DistillationLoss


def main() -> None:
    folder, micro_batch = Path(sys.argv[1]), int(sys.argv[2])
    make: Any = prepared
    if "trl" in sys.argv:
        from tiny_sft import prepared_sft as make
    settings: dict[str, Any] = {
        "dropout": 0.0,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": 2,
        "per_device_eval_batch_size": 3,  # so that two ranks have equal shares of the examples
        "save_strategy": "steps",
        "save_steps": 4,
        "ddp_backend": "gloo",
    }
    taught = "distillation" in sys.argv
    loss, other = (DistillationLoss(larger_model()) if taught else None for _ in "ab")
    trainer, callback = make(folder, **settings, **({"loss": loss} if taught else {}))
    trainer.train()
    resumed, again = make(folder / "resumed", **settings, **({"loss": other} if taught else {}))
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-8"))
    seen = {
        "rows": trainer.rows,
        "rows_resumed": resumed.rows,
        "divergence": [e["divergence"] for e in trainer.state.log_history if "divergence" in e],
        "decisions": decisions(trainer),
        "decisions_resumed": decisions(resumed),
        "state": callback.policy.state_dict(),
        "state_resumed": again.policy.state_dict(),
    }
    rank = trainer.args.process_index
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
