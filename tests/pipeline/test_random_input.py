"""Random damage to what a user gives: either it works, or one message says what is wrong."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from drpruning.common.errors import BadInput
from drpruning.data.blocks import read_manifest
from drpruning.models.inspect import check_weights, shape_of
from drpruning.models.tokenizer import check_tokenizer
from drpruning.pipeline.preflight import plan_run
from drpruning.recipe import load_recipe, parse_recipe
from drpruning.recipe.yaml_io import dump_yaml, parse_yaml
from helpers.damaged_places import Place

ODD = [
    None, True, False, 0, -1, 1, 2**63 - 1, 0.0, -0.0, 0.5, 1e308, float("nan"), float("inf"), "",
    " ", "x", "1", "no", "1e5", "\0", "é😀\n", "../x", "/", "~", "~x", "$", "$HOME", "x" * 300,
    [], [1], ["a", None], {}, {"a": 1}, {"": None}, [[]], [{}],
]  # fmt: skip
TIMES = 200


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and no home folder but one of the test's own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HOME", str(tmp_path))


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A file with a few bytes changed, cut out, doubled or put in."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 20])
        part = rng.choice(
            [b"", rng.randbytes(length), bytes(data[at : at + length]) * 2]
            + [
                text.encode()
                for text in ("\n", "\t", ": ", "- ", "&a ", "*a", "[", '"', "{", "<<: ")
            ]
        )
        data[at : at + rng.choice([0, length])] = part
    return bytes(data)


def altered(value: Any, rng: random.Random) -> Any:
    """A copy of a value of mappings and lists, one place in it replaced, removed or doubled."""
    copy = json.loads(json.dumps(value))
    section: Any = copy
    while True:
        keys = list(section) if isinstance(section, dict) else list(range(len(section)))
        key = rng.choice(keys)
        if isinstance(section[key], dict | list) and section[key] and rng.random() < 0.8:
            section = section[key]
            continue
        if rng.random() < 0.1:
            del section[key]
        else:
            section[key] = rng.choice(ODD)
        return copy


def refused(action: Callable[[], object]) -> bool:
    """Whether it was refused; anything but success or BadInput comes through."""
    try:
        action()
    except BadInput as error:
        message = str(error)
        assert 0 < len(message) < 5000, message[:500]
        return True
    return False


def test_recipes_of_other_bytes(place: Place) -> None:
    rng = random.Random(0)
    good = (place / "recipe.yaml").read_bytes()
    outcomes = []
    for _ in range(TIMES):
        place.write("recipe.yaml", damaged(good, rng))
        outcomes.append(refused(lambda: load_recipe("recipe.yaml")))
    assert 0 < sum(outcomes) < TIMES


def test_recipes_of_other_values(place: Place) -> None:
    rng = random.Random(1)
    place.recipe["prune"]["distill"] = {"teacher": "self"}
    place.recipe["pretrain"]["distill"] = {"teachers": {"model": 1, "./model": {"numbers": 1}}}
    good = parse_recipe(place.recipe).model_dump(mode="json")
    planned = []
    for _ in range(TIMES):
        values = altered(good, rng)
        if not refused(lambda values=values: parse_recipe(values)):
            recipe = parse_recipe(values)
            assert parse_recipe(parse_yaml(recipe.to_yaml(), "recipe")) == recipe
            planned.append(plan_run(recipe))
    assert any(plan.problems for plan in planned)
    assert not all(plan.problems for plan in planned)


@pytest.mark.parametrize("field", ["teacher", "teachers", "top_k"])
def test_teachers_of_other_values(place: Place, field: str) -> None:
    planned = 0
    for value in ODD:
        odd = {str(value): 1} if field == "teachers" else value
        place.recipe["pretrain"]["distill"] = {field: odd}
        if not refused(lambda: parse_recipe(place.recipe)):
            recipe = parse_recipe(place.recipe)
            assert parse_recipe(parse_yaml(recipe.to_yaml(), "recipe")) == recipe
            plan_run(recipe)
            planned += 1
    assert 0 < planned < len(ODD)


def test_models_of_other_values(place: Place) -> None:
    rng = random.Random(2)
    config = json.loads((place / "model/config.json").read_text())
    tokenizer = json.loads((place / "model/tokenizer.json").read_text())
    weights = (place / "model/model.safetensors").read_bytes()
    length = 8 + int.from_bytes(weights[:8], "little")

    def check() -> None:
        shape = shape_of(json.loads((place / "model/config.json").read_text()), "config.json")
        check_tokenizer("model", shape, "model.source")
        check_weights("model", shape, "model.source")

    assert not refused(check)
    for name, damage in {
        "config.json": lambda: json.dumps(altered(config, rng)).encode(),
        "tokenizer.json": lambda: json.dumps(altered(tokenizer, rng)).encode(),
        "model.safetensors": lambda: damaged(weights[:length], rng) + weights[length:],
    }.items():
        good = (place / f"model/{name}").read_bytes()
        for _ in range(TIMES // 2):
            place.write(f"model/{name}", damage())
            refused(check)
        place.write(f"model/{name}", good)
    assert not refused(check)


def test_manifests_of_other_values(place: Place) -> None:
    rng = random.Random(3)
    counts = dict.fromkeys(
        ("documents", "tokens", "empty_documents", "duplicates", "in_other_validation",
         "validation_documents", "train_blocks", "validation_blocks", "dropped_tokens"), 1,
    )  # fmt: skip
    counts = {**counts, "special_tokens": {"</s>": 1}}
    identity = {"tokenizer": "a", "settings": {"seed": 0}, "domains": {"web": {"source": []}}}
    good = {
        "version": 3, "fingerprint": "a", "tokenizer": "model", "eos_id": 0, "sequence_length": 16,
        "document_format": {"special_tokens": "text", "bos": "auto", "eos": "auto"}, "bos_id": None,
        "dtype": "uint16", "identity": identity, "domains": {"web": counts},
        "places": {"web": {"source": "a", "validation": None}},
        "tokenized": {"web": {"source": {
            "documents": 1, "tokens": 1, "empty": 0, "special_tokens": {"</s>": 1},
        }}},
    }  # fmt: skip
    place.write("manifest.json", json.dumps(good))
    assert read_manifest(place.folder) == good
    outcomes = []
    for _ in range(TIMES):
        place.write("manifest.json", json.dumps(altered(good, rng)))
        outcomes.append(refused(lambda: read_manifest(place.folder)))
    assert sum(outcomes) > TIMES // 2


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:20])
def test_values_written_as_yaml_are_read_back(value: Any) -> None:
    there = parse_yaml(dump_yaml({"a": value, "1e5": [value], "no": "010"}), "text")
    assert repr(there) == repr({"a": value, "1e5": [value], "no": "010"})
    assert yaml.safe_load("a: 1") == parse_yaml("a: 1", "text")
