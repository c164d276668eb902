"""The setting `distill`: who teaches whom, what is written out, what belongs to a run."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from drpruning.common.errors import BadInput
from drpruning.recipe import Recipe, parse_recipe
from drpruning.recipe.changes import differences, fixed_settings, portable_settings
from drpruning.runs.folder import relocated

VALUES: dict[str, Any] = {
    "model": {"source": "source"},
    "data": {
        "domains": {
            "a": {"source": "a.jsonl", "share": 0.5},
            "b": {"source": "b.jsonl", "share": 0.5},
            "c": {"source": "c.jsonl", "share": 0},
        }
    },
    "pretrain": {"steps": 10},
    "output": "out",
}


def recipe(distill: Any = None, *, prunes: bool = False, **scheduling: Any) -> Recipe:
    """A recipe whose recovery, or continued pretraining, has this setting."""
    values = copy.deepcopy(VALUES) | {"scheduling": scheduling}
    if prunes:
        values["model"]["target"] = {"num_layers": 1}
        values["prune"] = {"steps": 8}
    if distill is not None:
        values["pretrain"]["distill"] = distill
    return parse_recipe(values)


def test_where_nothing_is_pruned_no_model_teaches_and_the_recipe_says_so() -> None:
    absent, off = recipe(prunes=False), recipe("none", prunes=False)
    assert absent == off
    for phase in absent.phases:
        assert absent.distillation(phase) is None
        assert absent.teachers(phase) == {}
    assert yaml.safe_load(absent.to_yaml())["pretrain"]["distill"] == "none"
    # So a checkpoint of a version without the setting is that of a recipe without a teacher.
    assert "distill" not in fixed_settings(absent)["pretrain"]
    assert absent.pretrain is not None
    in_code = absent.pretrain.model_copy(update={"distill": None})  # not read from a mapping
    assert fixed_settings(absent.model_copy(update={"pretrain": in_code})) == fixed_settings(absent)


def test_phases_made_in_code_have_the_same_default() -> None:
    read = recipe(prunes=True)
    values = {name: getattr(read, name) for name in type(read).model_fields}
    for phase in ("prune", "pretrain"):
        values[phase] = values[phase].model_copy(update={"distill": None})
    assert Recipe(**values) == read


@pytest.mark.parametrize("setting", [None, {}])
def test_the_model_that_is_pruned_teaches_its_recovery_by_default(
    setting: dict[str, Any] | None,
) -> None:
    found = recipe(setting, prunes=True)
    assert yaml.safe_load(found.to_yaml())["pretrain"]["distill"]["weight"] == 0.9
    assert found.teachers("pretrain") == {"source": {"a": 1.0, "b": 1.0}}
    assert found.teachers("prune") == {}
    distill = found.distillation("pretrain")
    assert distill is not None
    assert (distill.weight, distill.temperature, distill.top_k) == (0.9, 1.0, None)


@pytest.mark.parametrize(
    "distill",
    [
        {"teacher": "t", "weight": 1, "final_weight": 0},
        {"teacher": "$HOME/$$t"},
        {"teachers": {"./~t": 1, "$HOME/$$u": {"a": 1, "b": 2}}, "top_k": 4, "cache": True},
    ],
)
def test_resolved_recipe_reads_back_the_same(distill: dict[str, Any]) -> None:
    found = recipe(distill)
    again = parse_recipe(yaml.safe_load(found.to_yaml()))
    assert again == found
    assert again.teachers("pretrain") == found.teachers("pretrain")


positive = st.floats(min_value=1e-300, max_value=1e300)
by_domain = st.fixed_dictionaries({"a": positive}, optional={"b": st.just(0) | positive})


@given(st.dictionaries(st.sampled_from("tuvw"), positive | by_domain, min_size=1), positive)
def test_weights_of_a_domain_sum_to_one_and_do_not_depend_on_their_unit(
    teachers: dict[str, Any], everywhere: float
) -> None:
    weights = recipe({"teachers": {"s": everywhere, **teachers}}).teachers("pretrain")
    for domain in ("a", "b"):
        assert sum(own[domain] for own in weights.values()) == pytest.approx(1)
    assert set(weights) == {"s", *teachers}
    alone = [own for own in teachers.values() if isinstance(own, dict) and not own.get("b")]
    assert sum(not own["b"] for own in weights.values()) >= len(alone)


def test_weights_are_in_proportion() -> None:
    found = recipe({"teachers": {"t": 1, "u": {"a": 3}}}).teachers("pretrain")
    assert found == {"t": {"a": 0.25, "b": 1.0}, "u": {"a": 0.75, "b": 0.0}}


@pytest.mark.parametrize(
    ("distill", "scheduling", "origin", "model"),
    [
        ({"teacher": "t"}, {}, "models", "t"),
        ({"teachers": {"t": {"a": 1, "b": 2}}}, {}, "models", "t"),
        ({"teachers": {"t": 1, "u": 1}}, {}, None, None),
        ({"teacher": "t"}, {"policy": "sheared"}, "models", "t"),
        ({"teacher": "t"}, {"policy": "constant"}, None, None),
        ({"teacher": "t"}, {"forecast": "never"}, "models", "t"),
        ({"teacher": "t"}, {"reference_loss": "none"}, None, None),
        ({"teacher": "t"}, {"reference": "paper"}, None, None),
        ({"teacher": "t"}, {"reference_loss": {"from_model": "m"}}, "models", "m"),
        ({"teacher": "t"}, {"reference_loss": {"a": 1.0, "b": 1.0}}, "given", None),
        ({"teacher": "t"}, {"start": {"reference_loss": {"a": 1.0, "b": 1.0}}}, "start", None),
    ],
)
def test_losses_are_compared_with_those_of_the_only_teacher(
    distill: Any, scheduling: dict[str, Any], origin: str | None, model: str | None
) -> None:
    found = recipe(distill, **scheduling)
    assert found.reference_origin == origin
    models = found.reference_models
    assert (None if models is None else models.from_model) == model


def test_where_a_model_is_pruned_its_losses_stay_the_reference() -> None:
    found = recipe({"teacher": "t"}, prunes=True)
    assert found.reference_origin == "source"
    assert found.reference_models is None


def test_several_teachers_without_forecasts_leave_nothing_to_steer_by() -> None:
    with pytest.raises(BadInput, match="could never move the ratio"):
        recipe({"teachers": {"t": 1, "u": 1}}, forecast="never")


def changed(first: Any, second: Any) -> list[str]:
    return differences(fixed_settings(recipe(second)), fixed_settings(recipe(first)))


def test_a_run_keeps_its_teacher_but_not_how_that_is_kept() -> None:
    base = {"teacher": "t", "top_k": 4}
    for free in ({"cache": True}, {"shard": False}):
        assert not changed(base, base | free)
    for fixed in ({"weight": 0.5}, {"temperature": 2}, {"top_k": 8}, {"dtype": "fp32"}):
        (line,) = changed(base, base | fixed)
        assert line.startswith(f"pretrain.distill.{next(iter(fixed))} ")
    assert changed(base, "none")
    assert changed(base, base | {"teacher": "u"})
    moved = recipe(base | {"teacher": "elsewhere/t"})
    assert portable_settings(moved) == portable_settings(recipe(base))
    assert portable_settings(moved) != portable_settings(recipe(base | {"weight": 0.5}))


def test_teachers_that_move_with_a_run_are_found_again(tmp_path: Path) -> None:
    for name in ("new/out", "new/t", "kept"):
        (tmp_path / name).mkdir(parents=True)
    old, kept = str(tmp_path / "old/t"), str(tmp_path / "kept")
    begun = recipe({"teachers": {old: 1, kept: {"a": 1}, "hub/name": 2}}).model_copy(
        update={"output": str(tmp_path / "old/out")}
    )
    found = relocated(begun, tmp_path / "new/out")
    assert list(found.teachers("pretrain")) == [str(tmp_path / "new/t"), kept, "hub/name"]
    assert [*found.teachers("pretrain").values()] == [*begun.teachers("pretrain").values()]
