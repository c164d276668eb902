"""Python as with the base install alone: every package of the extras is made unimportable."""

import subprocess
import sys

TRAIN = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors",
         "zstandard", "matplotlib", "jinja2", "pyarrow", "huggingface_hub", "pandas")  # fmt: skip
BLOCK = f"""
import sys
for name in {TRAIN!r}:
    sys.modules[name] = None
"""


def without_extras(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code], capture_output=True, text=True, check=False
    )
