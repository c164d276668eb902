"""Forecasts at another share than the present one: fitted to the data that each domain has had."""

import json
import math

import numpy as np
import pytest

from drpruning.common.errors import BadInput
from drpruning.scheduling import PAPER_SETTINGS, DRPruning

STEPS = 600
RATIO = {"web": 0.67, "books": 0.2, "code": 0.08, "wiki": 0.05}
SHARES = np.array(list(RATIO.values()))
OURS = PAPER_SETTINGS | {
    "forecast_at": "equal",
    "transfer": 0.1,
    "min_quality": 0.5,
    "reference_rule": "latest",
    "rho": 0.3,
}


class World:
    """Four domains whose losses follow the law in their own data, from a model that knows a bit."""

    def __init__(self, transfer=0.1, noise=0.0, alike=False):
        self.A = np.array([1.5, 1.2, 1.4, 1.6]) if not alike else np.full(4, 1.5)
        self.beta = np.array([0.3, 0.4, 0.5, 0.35]) if not alike else np.full(4, 0.35)
        self.E = np.array([2.0, 1.8, 0.9, 1.5]) if not alike else np.full(4, 2.0)
        self.start = np.array([30.0, 20.0, 25.0, 15.0]) if not alike else np.full(4, 20.0)
        self.transfer, self.noise = transfer, noise
        self.rng = np.random.default_rng(0)

    def amount(self, data, step):
        return data + self.transfer * (step - data)

    def exact(self, amount):
        return self.A * (amount + self.start) ** -self.beta + self.E

    def losses(self, data, step):
        noise = self.noise * self.rng.normal(size=4)
        return dict(zip(RATIO, self.exact(self.amount(data, step)) + noise, strict=True))

    def run(self, policy, every=30, until=STEPS):
        """Decisions at every evaluation, and the data so far at each."""
        data, decisions = np.zeros(4), []
        for step in range(0, until + 1, every):
            decisions.append((step, data, policy.update(step, self.losses(data, step))))
            data = data + every * np.array(list(policy.ratio.values()))
        return decisions


def steered(**options):
    return DRPruning(RATIO, STEPS, **(OURS | options))


def array(mapping):
    return np.array([mapping[name] for name in RATIO])


@pytest.mark.parametrize("at", ["equal", "reference"])
@pytest.mark.parametrize("transfer", [0.0, 0.1])
def test_it_forecasts_what_would_come_at_the_stated_share(at, transfer):
    world = World(transfer)
    reference = SHARES
    forecasts = 0
    for step, data, decision in world.run(steered(forecast_at=at, transfer=transfer)):
        np.testing.assert_allclose(array(decision.data), data, atol=1e-9)
        if decision.forecast is not None:
            forecasts += 1
            share = np.full(4, 0.25) if at == "equal" else reference
            left = (STEPS - step) * (share + transfer * (1 - share))
            truth = world.exact(world.amount(data, step) + left)
            close = 0.05 if step < STEPS / 2 else 0.01  # early on E and beta are hardly known
            np.testing.assert_allclose(array(decision.forecast), truth, atol=close)
            why = decision.explanation
            np.testing.assert_allclose(array(why.forecast_share), share, atol=1e-12)
            assert set(why.reference_origin.values()) == {"forecast"}
        reference = array(decision.reference_ratio)
    assert forecasts == 17
    assert np.abs(reference - SHARES).max() > 0.01, "the reference ratio moved"


def test_the_law_in_the_explanation_is_the_curve_behind_losses_and_forecast():
    world = World()
    decisions = world.run(steered())
    step, data, decision = decisions[12]
    for i, name in enumerate(RATIO):
        law = decision.explanation.forecast_law[name]
        assert law["transfer"] == 0.1

        def at(x, law=law):
            return law["A"] * (x + law["offset"]) ** -law["beta"] + law["E"]

        now = data[i] + law["transfer"] * (step - data[i])
        end = now + (STEPS - step) * (0.25 + 0.1 * 0.75)
        assert at(now) == pytest.approx(decision.explanation.loss[name], abs=2e-3)
        assert at(end) == pytest.approx(decision.forecast[name], abs=2e-3)
    json.dumps(decision.explanation.forecast_law, allow_nan=False)


def test_forecasts_at_the_present_share_feed_themselves_and_those_at_an_equal_share_do_not():
    """Domains that are alike but for their share: the one with least data needs it most."""
    last = {}
    for at in ("present", "equal"):
        decisions = World(alike=True).run(steered(forecast_at=at))
        last[at] = array(decisions[-1][2].data) / STEPS
    assert last["present"][0] > SHARES[0] - 0.02
    assert last["equal"][0] < SHARES[0] - 0.1
    assert np.all(last["equal"][1:] > SHARES[1:])


def test_where_all_data_count_alike_shares_do_not_matter():
    by_share = [
        [d.forecast for _, _, d in World(transfer=1.0).run(steered(forecast_at=at, transfer=1.0))]
        for at in ("equal", "reference")
    ]
    for equal, reference in zip(*by_share, strict=True):
        assert (equal is None) == (reference is None)
        if equal is not None:
            assert equal == pytest.approx(reference, abs=1e-9)


def test_realised_shares_are_what_the_curves_are_fitted_to():
    """The policy decides one ratio, but another is trained on, as with an exhausted domain."""
    world, policy = World(), steered()
    really, data = np.array([0.4, 0.3, 0.2, 0.1]), np.zeros(4)
    for step in range(0, 301, 30):
        shares = dict(zip(RATIO, really.tolist(), strict=True)) if step else None
        data = really * step
        decision = policy.update(step, world.losses(data, step), shares=shares)
    left = 300 * (0.25 + 0.1 * 0.75)
    truth = world.exact(world.amount(data, 300) + left)
    np.testing.assert_allclose(array(decision.forecast), truth, atol=5e-3)


def test_a_resumed_policy_forecasts_the_same():
    world = World(noise=3e-3)
    policy, evaluations, data = steered(), [], np.zeros(4)
    states = []
    for step in range(0, STEPS + 1, 30):
        evaluations.append((step, world.losses(data, step)))
        states.append(json.loads(json.dumps(policy.state_dict(), allow_nan=False)))
        policy.update(*evaluations[-1])
        data = data + 30 * array(policy.ratio)
    for stop in (3, 9):
        resumed = steered()
        resumed.load_state_dict(states[stop])
        for evaluation in evaluations[stop:]:
            resumed.update(*evaluation)
        assert resumed.state_dict() == policy.state_dict()


@pytest.mark.filterwarnings("error")
def test_a_law_that_float64_cannot_hold_is_left_out_without_a_warning():
    """Noise while the size falls can be explained by an absurd power of the size."""
    rng, names = np.random.default_rng(2), ("a", "b")
    policy = DRPruning(dict.fromkeys(names, 0.5), 100, 1e6, forecast_start=0.0)
    left_out = set()
    for step in range(0, 101, 10):
        losses = dict(zip(names, (2 + rng.random(2)).tolist(), strict=True))
        decision = policy.update(step, losses, 1e6 * (1 + 0.3 * max(0, 1 - step / 30)))
        laws = decision.explanation.forecast_law
        left_out |= (decision.forecast or {}).keys() - laws.keys()
        assert all(math.isfinite(v) for law in laws.values() for v in law.values())
    assert left_out


def test_earlier_points_that_are_left_out_are_named_by_their_step():
    world, policy, data = World(noise=1e-3), steered(forecast_start=0.9), np.zeros(4)
    for step in range(0, STEPS + 1, 15):
        losses = world.losses(data, step)
        if step < 200:
            losses["code"] += 0.4
        decision = policy.update(step, losses)
        data = data + 15 * array(policy.ratio)
    since = decision.explanation.forecast_since
    assert 195 <= since["code"] <= 240
    assert "web" not in since


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forecast_at": "past"}, "forecast_at must be one of equal, reference, present, not 'pas"),
        ({"transfer": 1.5}, "transfer must lie between 0 and 1, not 1.5"),
        ({"transfer": float("nan")}, "transfer must lie between 0 and 1"),
        ({"forecast_start": -0.5}, "forecast_start must lie between 0 and 1"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(BadInput, match=message):
        steered(**options)
