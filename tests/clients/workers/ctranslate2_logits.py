"""What CTranslate2 makes of model folders: converted, then run.

Usage: python ctranslate2_logits.py JOB.json, see `asking.ask`.
"""

import json
import sys
from pathlib import Path

import ctranslate2
import numpy as np
from ctranslate2.converters import TransformersConverter


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    ids = np.array([job["ids"]], dtype=np.int32)
    lengths = np.array([ids.shape[1]], dtype=np.int32)
    answers = {}
    for name, folder in job["models"].items():
        converted = Path(job["out"], f"{name}-converted")
        try:
            TransformersConverter(folder).convert(str(converted), force=True)
            generator = ctranslate2.Generator(
                str(converted), device="cpu", compute_type="float32", inter_threads=1
            )
            view = ctranslate2.StorageView.from_array
            logits = np.array(generator.forward_batch(view(ids), view(lengths)))[0]
            np.save(Path(job["out"], f"{name}.npy"), logits.astype(np.float64))
            answers[name] = {}
        except Exception as error:
            answers[name] = {"error": f"{type(error).__name__}: {error}"}
    Path(job["out"], "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
