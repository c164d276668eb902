"""What this environment's Transformers makes of model folders.

Usage: python transformers_logits.py JOB.json, see `asking.ask`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    transformers.utils.logging.set_verbosity_error()
    job = json.loads(Path(sys.argv[1]).read_text())
    answers = {}
    for name, folder in job["models"].items():
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with torch.no_grad():
            logits = model.eval()(torch.tensor([job["ids"]])).logits[0]
        np.save(Path(job["out"], f"{name}.npy"), logits.double().numpy())
        answers[name] = {
            "keys": sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"]])),
            "tokens": [tokenizer(text)["input_ids"] for text in job["texts"]],
        }
    answers["version"] = transformers.__version__
    Path(job["out"], "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
