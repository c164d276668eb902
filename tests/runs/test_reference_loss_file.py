"""reference_loss.json: the law in it, what is read back and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from drpruning.common.errors import BadInput
from drpruning.recipe import ReferenceModels
from drpruning.runs.reference_losses import MeasuredModel, ReferenceLosses


def measured(path: str, parameters: int, *losses: float) -> MeasuredModel:
    return MeasuredModel(path, parameters, dict(zip("ab", losses, strict=True)))


def test_law_through_three_sizes_meets_them() -> None:
    models = [measured("x", 10, 4.0, 3.0), measured("z", 160, 2.5, 1.5), measured("y", 40, 3.0, 2)]
    found = ReferenceLosses.of(models, parameters=40)
    assert found.reference_loss == pytest.approx({"a": 3.0, "b": 2.0})
    larger = ReferenceLosses.of(models, parameters=80).reference_loss
    assert 2.5 < larger["a"] < 3.0
    assert 1.5 < larger["b"] < 2.0


FALLING = [measured("x", 10, 4.0, 3.0), measured("y", 40, 3.0, 2.0), measured("z", 99, 2.0, 1.1)]


def test_losses_that_do_not_fall_with_size_are_kept_but_refused_by_name(tmp_path: Path) -> None:
    models = [*FALLING[:2], measured("z", 99, 2.0, 2.1)]
    found = ReferenceLosses.of(models, parameters=20)
    assert found.reference_loss is None
    assert found.law is None
    found.write(tmp_path)
    again = ReferenceLosses.read(tmp_path, ReferenceModels(from_models=["x", "y", "z"]), "ab")
    assert again == found
    assert again.models == models
    with pytest.raises(BadInput, match=r"from_models: on b .* 2\.0000 of y .* 2\.1000 of z"):
        again.usable()


def test_models_of_one_size_have_no_law() -> None:
    with pytest.raises(BadInput, match="different"):
        ReferenceLosses.of([*FALLING, measured("w", 99, 1.9, 1.0)], parameters=20)


def test_file_reads_back_and_is_only_for_its_models(tmp_path: Path) -> None:
    found = ReferenceLosses.of(FALLING, parameters=20)
    found.write(tmp_path)
    wanted = ReferenceModels(from_models=["z", "x", "y"])
    assert ReferenceLosses.read(tmp_path, wanted, "ab") == found
    assert found.usable() == found.reference_loss
    assert found.largest_miss() == pytest.approx(
        max(
            abs(law["a"] * m.parameters ** -law["b"] + law["c"] - m.loss[d])
            for m in FALLING
            for d, law in (found.law or {}).items()
        )
    )
    other = ReferenceModels(from_model="x")
    with pytest.raises(BadInput, match="has the losses of x, y, z, not of x"):
        ReferenceLosses.read(tmp_path, other, "ab")
    with pytest.raises(BadInput, match="not measured yet"):
        ReferenceLosses.read(tmp_path / "none", wanted, "ab")


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ((), {"version": 2}),
        ((), []),
        (("models",), []),
        (("models", 0, "loss", "a"), "4.0"),
        (("models", 0, "loss", "a"), None),
        (("models", 0, "loss"), {"a": 4.0}),
        (("models", 0, "parameters"), -1),
        (("reference_loss", "a"), "2.1"),
        (("reference_loss",), {"a": 2.1}),
        (("reference_loss",), None),
        (("law",), None),
        (("law", "b"), {"a": 1.0}),
        (("parameters",), "20"),
    ],
)
def test_file_with_other_values_is_refused_by_name(
    tmp_path: Path, change: tuple[str | int, ...], value: Any
) -> None:
    ReferenceLosses.of(FALLING, parameters=20).write(tmp_path)
    file = tmp_path / "reference_loss.json"
    values: Any = {"": json.loads(file.read_text())}
    place, *path = ("", *change)
    inner = values
    for key in path:
        inner, place = inner[place], key
    inner[place] = value
    file.write_text(json.dumps(values[""]))
    with pytest.raises(BadInput, match=r"reference_loss\.json is not what .* remove it"):
        ReferenceLosses.read(tmp_path, ReferenceModels(from_models=["x", "y", "z"]), "ab")


def test_file_that_is_no_json_or_of_other_domains_is_refused(tmp_path: Path) -> None:
    wanted = ReferenceModels(from_models=["x", "y", "z"])
    ReferenceLosses.of(FALLING, parameters=20).write(tmp_path)
    with pytest.raises(BadInput, match="for the domains a, c"):
        ReferenceLosses.read(tmp_path, wanted, "ac")
    for text in ("[" * 100_000, "{", "\xff"):
        (tmp_path / "reference_loss.json").write_text(text, encoding="latin-1")
        with pytest.raises(BadInput, match=r"reference_loss\.json is not what"):
            ReferenceLosses.read(tmp_path, wanted, "ab")
