"""What PEFT and lm-eval make of model folders.

Usage: python harness_checks.py JOB.json, see `asking.ask`. `job["tasks"]` is a folder with the
task `local`. PEFT: an adapter is trained for two steps, merged, saved and loaded again.
"""

import json
import sys
from pathlib import Path

import lm_eval
import numpy as np
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM


def load(folder: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def adapter_checks(folder: str, ids: torch.Tensor, out: Path) -> dict[str, float]:
    """Differences of logits that are to be zero, and one that is not."""
    with torch.no_grad():
        before = load(folder)(ids).logits
    adapted = get_peft_model(load(folder), LoraConfig(target_modules="all-linear", r=4))
    with torch.no_grad():
        untrained = adapted(ids).logits
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        adapted(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.save_pretrained(out)
    with torch.no_grad():
        trained = adapted(ids).logits
        again = PeftModel.from_pretrained(load(folder), out)(ids).logits
        merged = adapted.merge_and_unload()(ids).logits
    return {
        "untrained": float((untrained - before).abs().max()),
        "changed": float((trained - before).abs().max()),
        "again": float((again - trained).abs().max()),
        "merged": float((merged - trained).abs().max()),
    }


def main() -> None:
    transformers.utils.logging.set_verbosity_error()
    job = json.loads(Path(sys.argv[1]).read_text())
    ids = torch.tensor([job["ids"]])
    answers = {}
    for name, folder in job["models"].items():
        found = lm_eval.simple_evaluate(
            HFLM(pretrained=folder, dtype="float32", device="cpu"),
            tasks=["local"],
            task_manager=TaskManager(include_path=job["tasks"], include_defaults=False),
            bootstrap_iters=0,
        )
        samples = [sample["resps"][0][0] for sample in found["samples"]["local"]]
        answers[name] = {
            "samples": np.ravel(samples).astype(float).tolist(),
            "adapter": adapter_checks(folder, ids, Path(job["out"], f"{name}-adapter")),
        }
    Path(job["out"], "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
