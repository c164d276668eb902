"""Policies in simulated trainings, with margins: what steering must win, and may lose at most.

The worlds are those of `benchmarks/worlds.py`, few and small here; losses are in nats, so a mean
loss that is 0.01 higher is a perplexity that is 1% higher. Everything is deterministic.
"""

import json
import math
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import worlds
from drpruning.scheduling import make_policy
from simulated import STEPS, Candidate, Outcome, World, draw, read_world, run

BOLD = pytest.param("tau=0.1", id="bold", marks=pytest.mark.slow)
SETTINGS = pytest.mark.parametrize("settings", [pytest.param("", id="default"), BOLD])
ONE_PERCENT = 0.01  # of perplexity
FEW, SOME, MANY = 6, 16, 24  # worlds


@cache
def outcomes(kind: str, count: int, spec: str) -> tuple[Outcome, ...]:
    # Forecasts take time, so that trainings with them are shorter and fewer.
    size = {"domains": 4, "evaluations": 10} if count == FEW else {"domains": 5, "evaluations": 20}
    drawn = (draw(kind, seed, **size) for seed in range(count))
    return tuple(run(world, Candidate.parse(spec)) for world in drawn)


def steered(settings: str, **more: str) -> str:
    parts = [*(f"{key}={value}" for key, value in more.items()), *filter(None, [settings])]
    return f"drpruning:{','.join(parts)}" if parts else "drpruning"


def difference(kind: str, count: int, spec: str, figure: str, other: str = "constant") -> float:
    """Mean over the worlds of what `spec` has above `other`."""
    pairs = zip(outcomes(kind, count, spec), outcomes(kind, count, other), strict=True)
    return float(np.mean([getattr(a, figure) - getattr(b, figure) for a, b in pairs]))


# --- what steering wins


@SETTINGS
@pytest.mark.parametrize("kind", ["skewed", pytest.param("even", marks=pytest.mark.slow)])
def test_the_sources_losses_as_reference_win(kind: str, settings: str) -> None:
    spec = steered(settings, reference_loss="source")
    assert difference(kind, MANY, spec, "average") < -0.02
    assert difference(kind, MANY, spec, "behind") < -0.15
    assert difference(kind, MANY, spec, "worst") < ONE_PERCENT


@SETTINGS
def test_forecasts_at_an_equal_share_win_with_nothing_given(settings: str) -> None:
    spec = steered(settings, forecast_at="equal")
    assert difference("skewed", FEW, spec, "average") < -0.02
    present = steered(settings, forecast_at="present")
    assert difference("skewed", FEW, spec, "average", present) < -0.02


# --- what it may lose


@SETTINGS
@pytest.mark.parametrize("shape", ["skewed", pytest.param("even", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "defect",
    [
        "wrong",
        "unreachable",
        *(pytest.param(d, marks=pytest.mark.slow) for d in ("noise", "duplicates")),
    ],
)
def test_a_bad_domain_or_reference_costs_no_perplexity(
    shape: str, defect: str, settings: str
) -> None:
    spec = steered(settings, reference_loss="source")
    assert difference(f"{shape}+{defect}", SOME, spec, "average") < ONE_PERCENT


@SETTINGS
@pytest.mark.parametrize("shape", ["skewed", pytest.param("even", marks=pytest.mark.slow)])
def test_it_loses_less_than_shearing_with_a_reference_that_no_one_reaches(
    shape: str, settings: str
) -> None:
    kind = f"{shape}+unreachable"
    spec = steered(settings, reference_loss="source")
    assert difference(kind, SOME, "sheared:reference_loss=source", "average", spec) > 0.02


# --- the worlds


def world(**changes: object) -> World:
    """Two domains, one of which learns from the other."""
    values = {
        "kind": "two",
        "seed": 0,
        "ratio": np.array([0.75, 0.25]),
        "E": np.array([1.0, 2.0]),
        "A": np.array([0.5, 0.4]),
        "C": np.array([0.25, 0.5]),
        "beta": np.array([0.5, 1.0]),
        "transfer": np.array([[1.0, 0.0], [0.2, 1.0]]),
        "unique": np.full(2, math.inf),
        "repeats": "decay",
        "source": np.array([1.2, 2.2]),
        "trained": np.array([1.4, 2.3]),
        "given": {"source": np.array([1.2, 2.2]), "trained": np.array([1.4, 2.3])},
        "evaluations": 10,
        "noise": 0.0,
    }
    return World(**{**values, **changes})  # type: ignore[arg-type]


def test_a_constant_ratio_ends_where_the_law_says() -> None:
    outcome = run(world(), Candidate.parse("constant"))
    expected = [1 + 0.5 * 1.0**-0.5, 2 + 0.4 / (0.5 + 0.25 + 0.2 * 0.75)]
    assert outcome.final == pytest.approx(expected)
    assert outcome.data == pytest.approx([0.75, 0.25])
    assert outcome.average == pytest.approx(np.mean(expected))
    assert outcome.worst == pytest.approx(max(expected))
    assert outcome.weighted == pytest.approx(0.75 * expected[0] + 0.25 * expected[1])
    assert outcome.behind == pytest.approx(max(expected[0] - 1.2, expected[1] - 2.2))
    assert outcome.churn == 0


def test_what_repeated_data_is_worth() -> None:
    unique = np.array([0.1, math.inf])
    seen = np.array([0.3, 0.7])
    decay, nothing = world(unique=unique), world(unique=unique, repeats="nothing")
    worth = 0.1 + 0.1 * 15.39 * (1 - math.exp(-2 / 15.39))
    assert decay.losses(seen)[0] == pytest.approx(1 + 0.5 * (0.25 + worth) ** -0.5)
    assert nothing.losses(seen)[0] == pytest.approx(1 + 0.5 * (0.25 + 0.1) ** -0.5)
    for seldom in (decay, nothing):  # before anything repeats there is no difference
        early = np.array([0.05, 0.1])
        assert seldom.losses(early) == pytest.approx(world().losses(early))


@pytest.mark.parametrize("kind", worlds.ALL_KINDS)
def test_drawn_worlds_make_sense(kind: str) -> None:
    for seed in range(20):
        drawn = draw(kind, seed)
        n = len(drawn.ratio)
        assert 3 <= n <= 30
        assert drawn.evaluations in (20, 60)
        assert drawn.ratio.sum() == pytest.approx(1)
        assert drawn.ratio.min() > 0
        start, end = drawn.losses(np.zeros(n)), drawn.losses(np.full(n, 1 / n))
        assert np.all(end <= start)
        assert np.all(drawn.E > 0)
        assert np.all(drawn.source < start), "pruning has made every domain worse"
        healthy = draw(kind.partition("+")[0], seed)
        assert np.array_equal(drawn.ratio, healthy.ratio), "a defect changes nothing else"
        assert np.array_equal(drawn.C, healthy.C)


def test_noise_is_the_same_for_every_policy_and_other_in_another_world() -> None:
    def first_losses(seed: int, name: str) -> Sequence[float]:
        seen = []

        class Spy:
            def __init__(self, given: World) -> None:
                shares = dict(zip(given.domains, given.ratio.tolist(), strict=True))
                self.policy = make_policy(name, shares, STEPS)
                self.ratio, self.domains = self.policy.ratio, self.policy.domains

            def update(self, step: int, losses: dict[str, float]) -> object:
                seen.append(list(losses.values()))
                return self.policy.update(step, losses)

        run(world(seed=seed, noise=0.01, evaluations=3), Spy)  # type: ignore[arg-type]
        return seen[0]

    assert first_losses(0, "constant") == first_losses(0, "equal")
    assert first_losses(0, "constant") != first_losses(1, "constant")


def test_a_world_from_a_file(tmp_path: Path) -> None:
    values = {
        "ratio": [0.75, 0.25],
        "E": [1.0, 2.0],
        "A": [0.5, 0.4],
        "C": [0.25, 0.5],
        "beta": [0.5, 1.0],
        "kappa": [[1.0, 0.0], [0.2, 1.0]],
        "source": [1.2, 2.2],
        "noise": 0.0,
    }
    file = tmp_path / "two.json"
    file.write_text(json.dumps(values))
    read = run(read_world(file, seed=3), Candidate.parse("constant"))
    assert read.final == pytest.approx(run(world(), Candidate.parse("constant")).final)
    equal = run(read_world(file, seed=3), Candidate.parse("constant:smoothing=0"))
    assert equal.data == pytest.approx([0.5, 0.5])
    assert equal.final == pytest.approx(run(world(), Candidate.parse("equal")).final)


def test_the_command_prints_a_table_and_writes_all_outcomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    arguments = [
        "--worlds",
        "2",
        "--kind",
        "even+noise",
        "--domains",
        "3",
        "--evaluations",
        "5",
        "--set",
        "rho=0.3",
    ]
    policies = ["--policies", "equal", "drpruning:reference_loss=source"]
    others = ["--set", "rho=0.3", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["worlds.py", *arguments, *policies, *others])
    worlds.main()
    printed = capsys.readouterr().out
    assert "## even+noise, 2 worlds" in printed
    assert "| drpruning:reference_loss=source | " in printed
    record = json.loads(file.read_text())
    assert record["versions"]["drpruning"]
    first = record["kinds"]["even+noise"][0]["outcomes"]
    assert list(first) == ["constant", "equal", "drpruning:reference_loss=source"]
    assert first["equal"]["data"] == pytest.approx([1 / 3] * 3)
    direct = run(draw("even+noise", 0, domains=3, evaluations=5), Candidate.parse("equal"))
    assert first["equal"]["average"] == direct.average
    wider = Candidate.parse("drpruning:reference_loss=source", {"rho": 0.3})
    assert wider.settings["rho"] == 0.3
