"""What vLLM makes of model folders: log-probabilities of every token at every place.

Usage: python vllm_logits.py JOB.json, see `asking.ask`. One model per process: vLLM keeps what it
has taken.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def main() -> None:
    from vllm import LLM, SamplingParams

    job = json.loads(Path(sys.argv[1]).read_text())
    ((name, folder),) = job["models"].items()
    vocabulary = json.loads(Path(folder, "config.json").read_text())["vocab_size"]
    answers = {}
    try:
        model = LLM(
            folder,
            dtype="float32",
            enforce_eager=True,
            max_model_len=64,
            max_logprobs=vocabulary,
            disable_log_stats=True,
        )
        parameters = SamplingParams(max_tokens=1, prompt_logprobs=vocabulary, detokenize=False)
        (output,) = model.generate([{"prompt_token_ids": job["ids"]}], parameters)
        found = np.full((len(job["ids"]) - 1, vocabulary), np.nan)
        for place, entries in enumerate(output.prompt_logprobs[1:]):
            for token, entry in entries.items():
                found[place, token] = entry.logprob
        np.save(Path(job["out"], f"{name}.npy"), found)
        texts = [{"prompt": text} for text in job["texts"]]
        outputs = model.generate(texts, SamplingParams(max_tokens=1))
        answers[name] = {"tokens": [list(output.prompt_token_ids) for output in outputs]}
    except Exception as error:
        answers[name] = {"error": f"{type(error).__name__}: {error}"}
    Path(job["out"], "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
