"""The types that llama.cpp's Q4_K_M gives to the weights of model folders.

Usage: python llama_cpp_types.py JOB.json, see `asking.ask`. The answer has model -> weight -> type.
"""

import ctypes
import json
import sys
from pathlib import Path


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    sys.path[:0] = [job["source"], f"{job['source']}/gguf-py"]
    import gguf
    import llama_cpp
    from llama_cpp_logits import convert

    answers = {}
    for name, folder in job["models"].items():
        plain, small = Path(job["out"], f"{name}.gguf"), Path(job["out"], f"{name}-q4.gguf")
        convert(folder, plain)
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
        settings.nthread = 1
        failed = llama_cpp.llama_model_quantize(
            str(plain).encode(), str(small).encode(), ctypes.byref(settings)
        )
        assert not failed, name
        tensors = gguf.GGUFReader(small).tensors
        answers[name] = {tensor.name: tensor.tensor_type.name for tensor in tensors}
    Path(job["out"], "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
