"""Recipes: what is accepted, what the message says of what is not, defaults of the paper."""

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from drpruning.common.errors import BadInput
from drpruning.common.policy_settings import PAPER_SETTINGS
from drpruning.pipeline.prepared import domain_sources
from drpruning.recipe import load_recipe, parse_recipe
from drpruning.recipe.changes import fixed_settings
from drpruning.recipe.scheduling import DEFAULTS, PAPER
from drpruning.runs.policy import phase_policy
from drpruning.scheduling import policy_settings
from drpruning.scheduling.registry import _POLICIES

SMALLEST = {
    "model": {"source": "m"},
    "data": {"domains": {"a": {"source": "a.jsonl", "share": 1.0}}},
    "pretrain": {"steps": 10},
    "output": "out",
}


def changed(path: str, value: Any) -> dict[str, Any]:
    values: dict[str, Any] = copy.deepcopy(SMALLEST)
    place = values
    *parents, last = path.split(".")
    for key in parents:
        place = place.setdefault(key, {})
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return values


def test_smallest_recipe_has_the_papers_settings() -> None:
    recipe = parse_recipe({**SMALLEST, "model": {"source": "m", "target": {"num_layers": 2}},
                           "prune": {"steps": 5}})  # fmt: skip
    assert recipe.prune is not None
    assert recipe.pretrain is not None
    assert (recipe.prune.global_batch, recipe.prune.evaluate_every) == (32, 50)
    assert (recipe.prune.warmup, recipe.prune.sparsity_warmup) == (0.1, 0.2)
    assert (recipe.pretrain.global_batch, recipe.pretrain.evaluate_every) == (256, 400)
    assert (recipe.pretrain.warmup, recipe.pretrain.learning_rate) == (0.03, 1e-4)
    assert recipe.pretrain.betas == (0.9, 0.95)
    assert recipe.data.sequence_length == 4096
    assert recipe.scheduling.policy == "drpruning"


def test_resolved_recipe_reads_back_the_same(tmp_path: Path) -> None:
    recipe = parse_recipe(changed("scheduling", {"rho": 0.2}))
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    assert load_recipe(file) == recipe


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("pretrain.steps", "ten", ["pretrain.steps", "integer", "'ten'"]),
        ("data.domains.a.shar", 1, ["data.domains.a.shar", "did you mean 'share'"]),
        ("data.domains.a.share", 0.9, ["data.domains", "sum to 0.9"]),
        ("data.domains.a.share", -1.0, ["data.domains.a.share", "greater than or equal to 0"]),
        ("data.domains.a.source", 3, ["data.domains.a.source", "write text", "3"]),
        ("model.target", {"num_layers": 2}, ["prune", "missing"]),
        ("model", {}, ["model", "source"]),
        ("scheduling.policy", "best", ["scheduling.policy", "'drpruning'", "'best'"]),
        ("scheduling.policy", "sheared", ["scheduling.reference_loss", "sheared"]),
        ("scheduling.reference_loss", {"b": 1.0}, ["scheduling.reference_loss", "['a']", "['b']"]),
        (
            "scheduling.reference_loss",
            "m",
            ["scheduling.reference_loss", "{from_model: NAME}", "'m'"],
        ),
        ("scheduling.reference_loss", {"a": "2"}, ["scheduling.reference_loss.a", "number", "'2'"]),
        (
            "scheduling.reference_loss",
            {"from_modle": "m"},
            ["scheduling.reference_loss.from_modle", "did you mean 'from_model'"],
        ),
        (
            "scheduling.reference_loss",
            {"from_models": ["x", "y"]},
            ["scheduling.reference_loss.from_models", "three or more", "['x', 'y']"],
        ),
        ("scheduling.reference_loss", {"from_models": ["x", "y", "x"]}, ["different sizes"]),
        (
            "scheduling.reference_loss",
            {"from_model": "m", "from_models": ["x", "y", "z"]},
            ["scheduling.reference_loss", "either from_model or from_models"],
        ),
        (
            "scheduling.reference_loss",
            {"from_model": 3},
            ["scheduling.reference_loss", "from_model takes the name of a model", "not a number"],
        ),
        (
            "scheduling.reference_loss",
            {"from_model": None},
            ["scheduling.reference_loss", "write either from_model or from_models"],
        ),
        (
            "scheduling.reference_loss",
            {"from_models": True},
            ["scheduling.reference_loss.from_models", "list", "True"],
        ),
        (
            "scheduling",
            {"forecast": "never"},
            ["scheduling.reference_loss", "could never move the ratio"],
        ),
        (
            "scheduling.forecast",
            True,
            ["scheduling.forecast", "'combine', 'replace' or 'never'", "True"],
        ),
        ("scheduling.start", {}, ["scheduling.start", "at least one", "reference_ratio"]),
        ("scheduling.start", {"rati": {"a": 1.0}}, ["scheduling.start.rati", "'ratio'"]),
        ("scheduling.start", {"ratio": {"b": 1.0}}, ["scheduling.start.ratio", "['a']", "['b']"]),
        ("scheduling.start", {"ratio": {"a": 0.5}}, ["scheduling.start.ratio", "sum to 0.5"]),
        (
            "scheduling.start",
            {"reference_ratio": {"a": 0.0}},
            ["scheduling.start.reference_ratio.a", "greater than 0"],
        ),
        (
            "scheduling",
            {"reference_loss": {"a": 1.0}, "start": {"reference_loss": {"a": 1.0}}},
            ["scheduling.reference_loss", "scheduling.start", "drop"],
        ),
        ("scheduling.rho", 0.0, ["scheduling.rho", "greater than 0"]),
        ("training.precision", "fp16", ["training.precision", "'bf16'"]),
        ("training.micro_batch", True, ["training.micro_batch", "integer"]),
    ],
)
def test_wrong_field_is_named_with_a_remedy(path: str, value: Any, expected: list[str]) -> None:
    with pytest.raises(BadInput) as error:
        parse_recipe(changed(path, value))
    message = str(error.value)
    for words in expected:
        assert words in message, message
    assert "pydantic" not in message


def test_a_name_on_the_hub_is_not_below_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "here").mkdir()
    names = ["owner/name", "here", "gone.jsonl", "*.jsonl", "~/x.jsonl", "/x.jsonl"]
    domains = {f"d{i}": {"source": name, "share": 1 / 6} for i, name in enumerate(names)}
    values = {**SMALLEST, "data": {"root": str(tmp_path), "domains": domains}}
    found = [domain.source for domain in domain_sources(parse_recipe(values))]
    here, gone, several = (str(tmp_path / name) for name in names[1:4])
    assert found == ["owner/name", here, gone, several, "/home/me/x.jsonl", "/x.jsonl"]


def test_a_recipe_may_merge_mappings_and_use_words_of_yaml_as_names(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "model: {source: m}\noutput: out\npretrain: {steps: 1, learning_rate: 1e-3}\n"
        "data: {domains: {no: &d {source: a, share: 0.5}, on: {<<: *d, source: b}}}\n"
    )
    domains = load_recipe(file).data.domains
    assert {name: domain.source for name, domain in domains.items()} == {"no": "a", "on": "b"}


def test_mask_samples_must_divide_the_batch() -> None:
    values = {**SMALLEST, "model": {"source": "m", "target": {"num_layers": 1}},
              "prune": {"steps": 1, "global_batch": 6, "mask_samples": 4}}  # fmt: skip
    with pytest.raises(BadInput, match=r"mask_samples \(4\) must divide .*\[1, 2, 3, 6\]"):
        parse_recipe(values)


def test_every_wrong_field_is_named_at_once() -> None:
    values = changed("pretrain.steps", "x")
    values["training"] = {"seed": -1}
    with pytest.raises(BadInput) as error:
        parse_recipe(values)
    assert "pretrain.steps" in str(error.value)
    assert "training.seed" in str(error.value)


def test_overrides_reach_every_level(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(SMALLEST))
    recipe = load_recipe(
        file, ["pretrain.learning_rate=3e-4", "training.checkpoint.keep=5", "output=elsewhere"]
    )
    assert recipe.pretrain is not None
    assert recipe.pretrain.learning_rate == 3e-4
    assert recipe.training.checkpoint.keep == 5
    assert recipe.output == "elsewhere"


@pytest.mark.parametrize(
    "scheduling",
    [
        {"reference_loss": {"from_model": "m"}, "policy": "sheared"},
        {"reference_loss": {"from_models": ["x", "y", "z"]}},
        {"reference_loss": {"a": 2.5}},
        {"start": {"ratio": {"a": 1.0}, "reference_loss": {"a": 0.0}}, "policy": "sheared"},
    ],
)
def test_reference_losses_and_start_read_back_the_same(scheduling: dict[str, Any]) -> None:
    recipe = parse_recipe(changed("scheduling", scheduling))
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


def test_domain_may_have_the_name_of_a_field() -> None:
    values = changed("scheduling", {"reference_loss": {"from_model": 2.5}})
    values["data"]["domains"] = {"from_model": {"source": "a.jsonl", "share": 1.0}}
    assert parse_recipe(values).scheduling.reference_loss == {"from_model": 2.5}
    values["scheduling"] = {"reference_loss": {"from_model": "m"}}
    models = parse_recipe(values).scheduling.reference_models
    assert models is not None
    assert models.models == ["m"]


def test_start_may_be_a_file_whose_content_it_then_holds(tmp_path: Path) -> None:
    file, found = tmp_path / "r.yaml", tmp_path / "found.yaml"
    found.write_text("# from a run\nratio: {a: 1.0}\nreference_loss: {a: 2.25}\n")
    file.write_text(yaml.safe_dump(changed("scheduling.start", str(found))))
    recipe = load_recipe(file)
    assert recipe.scheduling.start is not None
    assert recipe.scheduling.start.reference_loss == {"a": 2.25}
    assert str(found) not in recipe.to_yaml()
    found.write_text("- 1\n")
    with pytest.raises(BadInput, match=r"found\.yaml: scheduling\.start is a mapping with ratio"):
        load_recipe(file)
    found.unlink()
    with pytest.raises(BadInput, match=r"scheduling\.start: .*found\.yaml: No such file"):
        load_recipe(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("rati: {a: 1.0}\n", "did you mean 'ratio'"),
        ("ratio: {b: 1.0}\n", "must name exactly the domains"),
        ("ratio: {a: 0.5}\n", "sum to 0.5"),
        ("reference_loss: {a: -1}\n", "greater than or equal to 0"),
        ("{}\n", "at least one"),
        ("[" * 20_000, "nested too deeply"),
    ],
)
def test_error_in_a_start_file_names_the_file(tmp_path: Path, content: str, words: str) -> None:
    file, found = tmp_path / "r.yaml", tmp_path / "found.yaml"
    found.write_text(content)
    file.write_text(yaml.safe_dump(SMALLEST))
    with pytest.raises(BadInput) as error:
        load_recipe(file, [f"scheduling.start={found}"])
    assert str(found) in str(error.value)
    assert words in str(error.value)


def test_start_file_must_have_a_name(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(changed("scheduling.start", "")))
    with pytest.raises(BadInput, match=r"scheduling\.start: is empty; write the name of a file"):
        load_recipe(file)


@pytest.mark.parametrize("key", ['"my.domain"', "'my.domain'"])
def test_a_key_with_a_dot_is_named_in_quotes(tmp_path: Path, key: str) -> None:
    values = changed("data.domains.other", {"source": "b.jsonl", "share": 0.5})
    values["data"]["domains"]["my.domain"] = {"source": "c=d.jsonl", "share": 0.3}
    values["data"]["domains"]["a"]["share"] = 0.3
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(values))
    domains = load_recipe(
        file, [f"data.domains.{key}.share=0.2", f"data.domains.{key}.source=a=b.jsonl"]
    ).data.domains
    assert (domains["my.domain"].share, domains["my.domain"].source) == (0.2, "a=b.jsonl")


@pytest.mark.parametrize("policy", ["drpruning", "naive_dro", "sheared", "group_dro", "cvar"])
def test_every_default_of_the_policy_is_written_out(policy: str) -> None:
    start = {"reference_loss": {"a": 1.0}}
    recipe = parse_recipe(changed("scheduling", {"policy": policy, "start": start}))
    written = yaml.safe_load(recipe.to_yaml())["scheduling"]
    signature = inspect.signature(_POLICIES[policy]).parameters
    for name in policy_settings(policy):
        if name in {"reference", "reference_loss"}:
            continue
        default = signature[name].default
        assert written[name] == default, name
        assert name in DEFAULTS[policy]
    foreign = set().union(*DEFAULTS.values()) - set(DEFAULTS[policy])
    assert all(written[name] is None for name in foreign)
    assert recipe.scheduling.options() == {}
    older = changed("scheduling", {"policy": policy, "start": start, "rho": None, "floor": None})
    assert parse_recipe(older) == recipe == parse_recipe(yaml.safe_load(recipe.to_yaml()))
    assert fixed_settings(parse_recipe(older)) == fixed_settings(recipe)


def test_another_policy_can_be_set_for_a_recipe_that_has_every_default(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(parse_recipe(changed("scheduling", {"rho": 0.5, "delta": 0.1})).to_yaml())
    scheduling = load_recipe(file, ["scheduling.policy=group_dro"]).scheduling
    assert (scheduling.policy, scheduling.eta, scheduling.rho) == ("group_dro", 0.1, None)
    assert load_recipe(file, ["scheduling.rho=0.3"]).scheduling.options() == {"rho": 0.3}


def two_domains(floor: Any) -> dict[str, Any]:
    values = changed("scheduling", {"policy": "naive_dro", "floor": floor})
    values["data"]["domains"] = {
        "web": {"source": "a.jsonl", "share": 0.7},
        "code": {"source": "b.jsonl", "share": 0.3},
    }
    return values


@pytest.mark.parametrize(
    ("floor", "expected"),
    [
        (None, {"web": 0.3, "code": 0.3}),
        ("smallest_reference", {"web": 0.3, "code": 0.3}),
        ("initial_or_equal", {"web": 0.375, "code": 0.225}),  # 0.5 and 0.3, scaled down to 0.6
        (0.1, {"web": 0.1, "code": 0.1}),
        ({"web": 0.6, "code": 0.05}, {"web": 0.6, "code": 0.05}),
    ],
)
def test_floors_hold_for_all_or_by_domain(floor: Any, expected: dict[str, float]) -> None:
    recipe = parse_recipe(two_domains(floor))
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe
    assert recipe.scheduling.floors(recipe.initial_ratio) == pytest.approx(expected)
    assert recipe.pretrain is not None
    policy = phase_policy(recipe, recipe.pretrain, 1.0)
    decision = policy.update(0, {"web": 0.0, "code": 5.0})
    assert decision.explanation.floor == pytest.approx(expected)
    assert decision.ratio["web"] >= expected["web"] - 1e-12
    if isinstance(floor, dict):
        assert decision.ratio["web"] == pytest.approx(0.6)


def test_start_below_the_floor_of_its_domain_is_refused() -> None:
    values = two_domains({"web": 0.6, "code": 0.05})
    values["scheduling"]["start"] = {"ratio": {"web": 0.5, "code": 0.5}}
    recipe = parse_recipe(values)
    assert recipe.pretrain is not None
    with pytest.raises(BadInput, match=r"start.ratio: 0.5 for web is below scheduling.floor \(0.6"):
        phase_policy(recipe, recipe.pretrain, 1.0)


def test_the_papers_settings_are_one_word() -> None:
    recipe = parse_recipe(changed("scheduling", {"reference": "paper"}))
    written = yaml.safe_load(recipe.to_yaml())["scheduling"]
    assert {name: written[name] for name in PAPER_SETTINGS if name in PAPER} == {
        name: value for name, value in PAPER_SETTINGS.items() if name in PAPER
    }
    assert PAPER.keys() - {"reference_loss"} == PAPER_SETTINGS.keys() - {"transfer"}
    assert written["reference_loss"] == "none"
    assert recipe.scheduling.options() == {"reference": "paper"}
    assert recipe.forecasts
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe
    own = parse_recipe(
        changed("scheduling", {"reference": "paper", "rho": 0.3, "min_quality": 0.5})
    )
    assert own.scheduling.options() == {"reference": "paper", "rho": 0.3, "min_quality": 0.5}


@pytest.mark.parametrize(
    ("scheduling", "prunes", "origin", "forecasts"),
    [
        ({}, True, "source", False),
        ({}, False, None, True),
        ({"forecast": "replace"}, True, "source", True),
        ({"forecast": "never"}, True, "source", False),
        ({"forecast": "combine", "reference_loss": "none"}, True, None, True),
        ({"reference_loss": "none"}, True, None, True),
        ({"reference_loss": {"a": 1.0}}, True, "given", False),
        ({"reference_loss": {"from_model": "m"}}, False, "models", False),
        ({"start": {"reference_loss": {"a": 1.0}}}, True, "start", False),
        ({"reference": "paper"}, True, None, True),
        ({"reference": "paper", "reference_loss": "auto"}, True, "source", True),
        ({"policy": "sheared"}, True, "source", False),
        ({"policy": "naive_dro"}, True, None, False),
        ({"policy": "naive_dro", "reference_loss": "source"}, True, "source", False),
        ({"policy": "constant"}, True, None, False),
    ],
)
def test_what_losses_are_compared_with(
    scheduling: dict[str, Any], prunes: bool, origin: str | None, forecasts: bool
) -> None:
    values = changed("scheduling", scheduling)
    if prunes:
        values |= {"model": {"source": "m", "target": {"num_layers": 1}}, "prune": {"steps": 8}}
    recipe = parse_recipe(values)
    assert recipe.reference_origin == origin
    assert recipe.forecasts == forecasts
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


def test_a_preset_gives_way_to_another_policy(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(parse_recipe(changed("scheduling", {"reference": "paper"})).to_yaml())
    other = load_recipe(file, ["scheduling.policy=constant"]).scheduling
    assert (other.policy, other.reference, other.rho) == ("constant", None, None)
    default = load_recipe(file, ["scheduling.reference=null"]).scheduling
    assert default == parse_recipe(SMALLEST).scheduling
