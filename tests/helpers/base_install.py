"""Python as after `pip install drpruning` alone: packages of the extras cannot be imported."""

import subprocess
import sys

EXTRAS = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors",
         "zstandard", "matplotlib", "jinja2", "pyarrow", "huggingface_hub", "pandas")  # fmt: skip
BLOCK = f"""
import sys
for name in {EXTRAS!r}:
    sys.modules[name] = None
"""


def without_extras(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code], capture_output=True, text=True, check=False
    )
