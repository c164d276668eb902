"""Other people's software reads our results and computes the same numbers.

The figures are those of docs/clients.md.
"""

import numpy as np
import pytest

from conftest import NAMES, ask, difference, own_logits

pytestmark = [pytest.mark.clients, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("environment", ["older", "lowest"])
def test_transformers_old_and_new(environment, sources, results, expected, tmp_path):
    found = ask(environment, "transformers_logits", results, tmp_path / "results")
    at_source = ask(environment, "transformers_logits", sources, tmp_path / "sources")
    for name in NAMES:
        assert found[name]["keys"] == [], name
        assert difference(found[name]["logits"], expected[name]) < 1e-5, name
        assert found[name]["tokens"] == at_source[name]["tokens"], name


def test_sources_are_read_as_transformers_4_reads_them(sources):
    for name, folder in sources.items():
        assert difference(own_logits(folder), np.load(folder / "logits.npy")) < 1e-5, name
