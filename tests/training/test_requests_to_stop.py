"""The real command, asked to stop while it does something else than train."""

from pathlib import Path
from typing import Any

import pytest

from helpers.commands import killed, plain
from helpers.small_runs import write


@pytest.mark.parametrize(
    ("moment", "counts"),
    [
        ("preparing", (3,)),
        pytest.param("preparing", (3, 3), marks=pytest.mark.slow),
        pytest.param("export", (1, 1), marks=pytest.mark.slow, id="pruned"),
        pytest.param("export", (2, 1), marks=pytest.mark.slow, id="recovered"),
        pytest.param("evaluating", (1, 1), marks=pytest.mark.slow),
        pytest.param("reporting", (1, 1), marks=pytest.mark.slow),
    ],
)
def test_asked_to_stop_outside_of_training(
    recipe_values: dict[str, Any], tmp_path: Path, moment: str, counts: tuple[int, ...]
) -> None:
    for phase in ("prune", "pretrain"):
        recipe_values[phase]["steps"] = 2
    recipe = write(recipe_values, tmp_path / "recipe.yaml")
    for number, count in zip(("SIGTERM", "SIGINT"), counts, strict=False):
        asked = killed(recipe, moment, count, number)
        assert asked.returncode == 130, asked.stderr
        assert asked.stderr.strip() == "drprune: interrupted"
    done = plain(recipe)
    assert done.returncode == 0, done.stderr
