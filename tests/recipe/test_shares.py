"""Shares as people give them: in any unit on request, and 0 for what is only evaluated."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpruning.common.errors import BadInput
from drpruning.recipe import Recipe, load_recipe, parse_recipe
from drpruning.recipe.changes import differences, fixed_settings
from drpruning.runs.policy import phase_policy, untrained_reference_loss

UNITS = st.one_of(st.just(0.0), st.floats(1e-6, 1e12), st.integers(1, 10**12))


def recipe(shares: dict[str, float], *, normalise: bool = True, **scheduling: Any) -> Recipe:
    return parse_recipe(values(shares, normalise=normalise, **scheduling))


def values(shares: dict[str, float], *, normalise: bool = True, **scheduling: Any) -> Any:
    domains = {name: {"source": name, "share": share} for name, share in shares.items()}
    return {
        "model": {"source": "some/model"},
        "data": {"normalise_shares": normalise, "domains": domains},
        "scheduling": scheduling,
        "pretrain": {"steps": 10},
        "output": "out",
    }


def refused(shares: dict[str, float], *, normalise: bool = True, **scheduling: Any) -> str:
    with pytest.raises(BadInput) as error:
        recipe(shares, normalise=normalise, **scheduling)
    return str(error.value)


@given(shares=st.dictionaries(st.sampled_from("abcdefgh"), UNITS, min_size=1))
def test_shares_keep_their_proportions_and_a_resolved_recipe_its_shares(shares: Any) -> None:
    if not any(shares.values()):
        assert "give at least one domain a share above 0" in refused(shares)
        return
    found = recipe(shares)
    total = math.fsum(shares.values())
    resolved = {name: domain.share for name, domain in found.data.domains.items()}
    if abs(total - 1) <= 1e-6:
        assert resolved == shares
    else:
        assert math.fsum(resolved.values()) == pytest.approx(1, abs=1e-12)
        assert resolved == pytest.approx({n: s / total for n, s in shares.items()}, rel=1e-12)
    assert found.untrained == [name for name, share in shares.items() if share == 0]
    assert list(found.initial_ratio) == [name for name, share in shares.items() if share > 0]
    written = found.model_dump(mode="json")
    assert "normalise_shares" not in written["data"]
    again = parse_recipe(written)
    assert {name: d.share for name, d in again.data.domains.items()} == resolved


def test_a_resolved_recipe_on_disk_is_the_same_run(tmp_path: Path) -> None:
    found = recipe({"web": 300, "code": 100, "held": 0})
    file = tmp_path / "recipe.yaml"
    file.write_text(found.to_yaml())
    assert differences(fixed_settings(load_recipe(file)), fixed_settings(found)) == []
    plain = recipe({"web": 0.75, "code": 0.25, "held": 0}, normalise=False)
    assert differences(fixed_settings(plain), fixed_settings(found)) == []


def test_very_large_and_very_small_shares() -> None:
    large = recipe({"a": 1.5e308, "b": 1.5e308, "c": 0})
    assert large.initial_ratio == {"a": 0.5, "b": 0.5}
    assert recipe({"a": 2e-308, "b": 2e-308}).initial_ratio == {"a": 0.5, "b": 0.5}
    assert "share of b is too small beside the others" in refused({"a": 1e200, "b": 1e-200})


def test_shares_that_do_not_sum_to_one_are_refused_with_both_remedies() -> None:
    message = refused({"web": 300, "code": 100}, normalise=False)
    assert "data.domains: the shares sum to 400, not 1" in message
    assert "web: 0.75, code: 0.25" in message
    assert "data.normalise_shares: true" in message
    assert "every share is 0" in refused({"web": 0}, normalise=False)
    assert "data.normalise_shares: write true or false" in refused({"web": 2}, normalise="yes")  # type: ignore[arg-type]


SHARES = {"a": 0.6, "b": 0.4, "held": 0.0}
TRAINED = {"a": 0.6, "b": 0.4}


@pytest.mark.parametrize(
    ("field", "scheduling"),
    [
        ("floor", {"floor": {"a": 0.1, "b": 0.1, "held": 0.0}}),
        ("start.ratio", {"start": {"ratio": TRAINED | {"held": 0.0}}}),
        (
            "start.reference_ratio",
            {"start": {"reference_ratio": {"a": 0.5, "b": 0.3, "held": 0.2}}},
        ),
    ],
)
def test_what_steers_does_not_name_a_domain_of_share_0(field: str, scheduling: Any) -> None:
    message = refused(SHARES, **scheduling)
    assert f"scheduling.{field}: held has the share 0 in data.domains" in message
    assert "leave it out" in message


@pytest.mark.parametrize("policy", ["drpruning", "naive_dro", "sheared"])
@pytest.mark.parametrize("given_in", ["reference_loss", "start"])
@pytest.mark.parametrize("extra", [{}, {"held": 3.0}])
def test_its_reference_loss_is_optional(
    policy: str, given_in: str, extra: dict[str, float]
) -> None:
    losses = {"a": 2.0, "b": 1.0, **extra}
    scheduling = {
        "reference_loss": {"reference_loss": losses},
        "start": {"start": {"reference_loss": losses}},
    }[given_in]
    found = recipe(SHARES, policy=policy, **scheduling)
    assert found.pretrain is not None
    policy_made = phase_policy(found, found.pretrain, 1.0)
    assert policy_made.domains == ("a", "b")
    assert policy_made.state_dict()["reference_loss"] == {"a": 2.0, "b": 1.0}
    assert untrained_reference_loss(found) == extra


def test_a_reference_loss_of_a_trained_domain_is_not_optional() -> None:
    message = refused(SHARES, reference_loss={"a": 2.0, "held": 3.0})
    assert "scheduling.reference_loss: must name exactly the domains ['a', 'b']" in message
