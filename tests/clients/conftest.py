"""Sources as people publish them, and results cut out of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from asking import CLIENTS, IDS, NAMES, TARGET, cut, own_logits, run_worker


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random model of every family, written by Transformers 4 as published ones are."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "ids.json").write_text(json.dumps(IDS))
    run_worker("older", "make_sources", folder)
    return {name: folder / name for name in NAMES}


@pytest.fixture(scope="session")
def results(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What `drprune apply-plan` makes of them."""
    folder = tmp_path_factory.mktemp("results")
    for name, source in sources.items():
        cut(source, folder / name, TARGET)
    return {name: folder / name for name in NAMES}


@pytest.fixture(scope="session")
def expected(results: dict[str, Path]) -> dict[str, np.ndarray]:
    """What the results compute here."""
    return {name: own_logits(folder) for name, folder in results.items()}


@pytest.fixture(scope="session")
def converter() -> str:
    """A folder with llama.cpp's own converter."""
    found = sorted(CLIENTS.glob("llama.cpp/*/vendor/llama.cpp/convert_hf_to_gguf.py"))
    if not found:
        pytest.fail("llama.cpp's converter is missing; run `make clients`")
    return str(found[-1].parent)
