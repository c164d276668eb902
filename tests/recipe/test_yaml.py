"""YAML of recipes: which plain values are numbers, what is refused, and that it reads back."""

import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from drpruning.common.errors import BadInput
from drpruning.recipe import parse_recipe
from drpruning.recipe.yaml_io import LARGEST_ALIASES, dump_yaml, parse_yaml

PLAIN = (
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.text("\x85\u2028\u2029\ufeff\t \n\r'\"\\:#-a", max_size=6)
    | st.sampled_from(["no", "on", "010", "1e5", "0x1F", "2020-01-01", "1:30", "<<", "=", "~"])
)  # fmt: skip
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc-: #'"), inner)
)


@settings(max_examples=100)
@given(VALUES)
def test_what_is_written_is_read_back_to_the_bit(value: Any) -> None:
    for flow in (False, True):
        assert repr(parse_yaml(dump_yaml({"a": value}, default_flow_style=flow), "t")["a"]) == repr(
            value
        )


@settings(max_examples=100)
@given(VALUES)
def test_readers_of_older_yaml_read_the_same(value: Any) -> None:
    assert repr(yaml.safe_load(dump_yaml({"a": value}))["a"]) == repr(value)


@pytest.mark.parametrize("text", ["010", "0x10", "0o10", "-007", "1__0", "1_"])
def test_numbers_that_readers_take_differently_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"t: line 1 .*no plain number.*quotes"):
        parse_yaml(f"a: {text}\n", "t")


def test_what_only_looks_like_a_number_is_refused() -> None:
    with pytest.raises(BadInput, match="t: is not valid YAML"):
        parse_yaml("a: ._\n", "t")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1_000", 1000), (".5", 0.5), ("5.", 5.0), (".inf", math.inf), ("-3", -3),
        ("true", True), ("~", None), ("", None), ("no", "no"), ("on", "on"), ("'010'", "010"),
        ("1:30", "1:30"), ("2020-01-01", "2020-01-01"), ("=", "="),
    ],
)  # fmt: skip
def test_plain_values(text: str, value: Any) -> None:
    found = parse_yaml(f"a: {text}\n", "t")["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["%YAML 1.2\n---\na: no\n", "a: &x 1\nb: &x 'no'\n", "# a\n"])
def test_what_other_yaml_may_have_says_nothing(text: str, recwarn: pytest.WarningsRecorder) -> None:
    assert "no" in str(parse_yaml(text, "t")) or parse_yaml(text, "t") is None
    assert not recwarn.list


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{a: 1, <<: {b: 1}, a: 2}", "line 1 .*'a' stands twice"),
        ("{<<: {b: 1}, <<: {c: 1}}", "line 1 .*'<<' stands twice"),
        ("a: !!int 3", "line 1 .*tag:yaml.org,2002:int"),
        ("b: 1\na: !mine 3", "line 2 .*!mine"),
        ("a: !!set {b, c}", "line 1 .*tag:yaml.org,2002:set"),
        ("a: 1\n--- \nb: 2", "line 2 .*another document"),
        ("a: *b", "line 1 .*'b'"),
        ("%YAML 9.9\n---\na: 1", "line 1"),
        ("a: 9223372036854775808", "line 1 .*64 bits"),
    ],
)
def test_what_is_refused_has_one_line_with_its_place(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=f"^t: {words}") as error:
        parse_yaml(text, "t")
    assert "\n" not in str(error.value)


def test_aliases_may_add_values_up_to_a_bound() -> None:
    count = LARGEST_ALIASES // 101
    row = f"a: &a [{', '.join(['0'] * 100)}]\n"
    found = parse_yaml(f"{row}b: [{', '.join(['*a'] * count)}]\n", "t")
    assert found["b"] == [[0] * 100] * count
    with pytest.raises(BadInput, match=r"t: line \d+ .*aliases make more than 100,000 values"):
        parse_yaml(f"{row}b: [{', '.join(['*a'] * (count + 1))}]\n", "t")


@pytest.mark.slow
def test_a_recipe_of_ten_thousand_domains_is_read() -> None:
    domains = "".join(f"    d{i}: {{source: d{i}.jsonl, share: 1e-4}}\n" for i in range(10_000))
    text = (
        f"model: {{source: m}}\noutput: out\npretrain: {{steps: 1}}\ndata:\n  domains:\n{domains}"
    )
    recipe = parse_recipe(parse_yaml(text, "t"))
    assert len(recipe.data.domains) == 10_000
    assert recipe.data.domains["d9999"].source == "d9999.jsonl"
