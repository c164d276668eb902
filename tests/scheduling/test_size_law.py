"""The law over model sizes: known laws come back, bounds hold, what is no law is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drpruning.scheduling import SizeLaw, fit_size_law
from drpruning.scheduling.size_law import first_rise

SIZES = np.array([1e9, 7e9, 13e9, 70e9])


def test_known_laws_come_back_and_extrapolate() -> None:
    a, b, c = np.array([400.0, 30.0, 1e4]), np.array([0.34, 0.2, 0.5]), np.array([1.7, 0.0, 0.4])
    losses = a[:, None] * SIZES ** -b[:, None] + c[:, None]
    law = fit_size_law(SIZES, losses)
    np.testing.assert_allclose(law.a, a, rtol=1e-7)
    np.testing.assert_allclose(law.b, b, rtol=1e-8)
    np.testing.assert_allclose(law.c, c, atol=1e-8)
    np.testing.assert_allclose(law.loss_at(1.3e9), a * 1.3e9**-b + c, rtol=1e-10)


def test_order_of_the_sizes_does_not_matter() -> None:
    losses = np.array([[3.0, 2.5, 2.4, 2.2]])
    order = [2, 0, 3, 1]
    one, two = fit_size_law(SIZES, losses), fit_size_law(SIZES[order], losses[:, order])
    np.testing.assert_allclose(one.loss_at(2e9), two.loss_at(2e9), rtol=1e-12)


@settings(max_examples=150)
@given(
    start=st.floats(5, 10),
    gaps=st.lists(st.floats(0.2, 1.0), min_size=2, max_size=5),
    top=st.floats(0.2, 3),
    exponent=st.floats(0.05, 1.0),
    constant=st.floats(0, 3),
    wanted=st.floats(5, 11),
)
def test_exact_laws_are_recovered(
    start: float, gaps: list[float], top: float, exponent: float, constant: float, wanted: float
) -> None:
    sizes = 10 ** (start + np.cumsum([0.0, *gaps]))
    truth = SizeLaw(
        np.array([top * sizes[0] ** exponent]), np.array([exponent]), np.array([constant])
    )
    law = fit_size_law(sizes, [[truth.loss_at(size)[0] for size in sizes]])
    for size in sizes:
        assert law.loss_at(size)[0] == pytest.approx(truth.loss_at(size)[0], abs=1e-9)
    assert law.loss_at(10**wanted)[0] == pytest.approx(truth.loss_at(10**wanted)[0], rel=1e-4)


falling = st.lists(st.floats(0.01, 5), min_size=3, max_size=6, unique_by=lambda x: round(x, 2))


@settings(max_examples=200)
@given(losses=falling, ratio=st.floats(1.5, 20))
def test_any_falling_losses_give_a_falling_law_above_zero(
    losses: list[float], ratio: float
) -> None:
    sizes = 1e6 * ratio ** np.arange(len(losses))
    values = np.array([sorted(losses, reverse=True)])
    law = fit_size_law(sizes, values)
    assert law.a[0] >= 0
    assert law.b[0] > 0
    assert law.c[0] >= 0
    curve = np.array([law.loss_at(n)[0] for n in np.geomspace(sizes[0] / 50, sizes[-1] * 50, 40)])
    assert np.all(np.isfinite(curve))
    assert np.all(curve >= 0)
    assert np.all(np.diff(curve) <= 0)
    flat = np.sum((values - values.mean()) ** 2)
    fitted = np.sum([(law.loss_at(n)[0] - v) ** 2 for n, v in zip(sizes, values[0], strict=True)])
    assert fitted < flat, "no worse than one loss for all sizes"


def test_no_nearby_law_is_better() -> None:
    sizes, losses = np.array([1e6, 3e6, 9e6, 2e7]), np.array([4.2, 4.05, 3.77, 3.7])
    law = fit_size_law(sizes, [losses])

    def error(a: float, b: float, c: float) -> float:
        return float(np.sum((a * sizes**-b + c - losses) ** 2))

    best = error(law.a[0], law.b[0], law.c[0])
    for change in (1 - 1e-4, 1 + 1e-4):
        assert best <= error(law.a[0] * change, law.b[0], law.c[0])
        assert best <= error(law.a[0], law.b[0] * change, law.c[0])
    assert best <= error(law.a[0], law.b[0], law.c[0] + 1e-4)


def test_losses_that_fall_ever_faster_give_a_power_law() -> None:
    sizes = [1e6, 1e7, 1e8]
    law = fit_size_law(sizes, [[4.0, 3.8, 3.0]])
    assert law.c[0] == 0
    assert 3.0 < law.loss_at(1e7)[0] < 4.0


@pytest.mark.parametrize(
    ("params", "losses", "words"),
    [
        ([1e6, 1e7], [[3.0, 2.0]], "at least 3 sizes"),
        ([1e6, 1e7, 1e7], [[3.0, 2.0, 1.0]], "all different"),
        ([1e6, 1e7, 1e8], [[3.0, 2.0]], "one loss per domain and size"),
        ([1e6, 1e7, 1e8], [[3.0, 2.0, 2.0]], "does not fall"),
        ([1e6, 1e7, 1e8], [[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]], "row 1"),
        ([1e6, 1e7, 1e8], [[3.0, 2.0, 0.0]], "losses must be positive"),
        ([1e6, 1e7, 1e8], [[3.0, float("nan"), 1.0]], "losses must be positive and finite"),
        ([0.0, 1e7, 1e8], [[3.0, 2.0, 1.0]], "sizes must be positive"),
    ],
)
def test_what_is_no_law_is_refused(
    params: list[float], losses: list[list[float]], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        fit_size_law(params, losses)


def test_size_to_read_at_must_be_positive() -> None:
    law = fit_size_law([1e6, 1e7, 1e8], [[3.0, 2.0, 1.5]])
    with pytest.raises(ValueError, match="positive"):
        law.loss_at(0)


def test_first_rise_is_the_larger_model_of_the_first_domain_that_rises() -> None:
    assert first_rise([[3.0, 2.0, 1.0], [3.0, 2.5, 2.0]]) is None
    assert first_rise([[3.0, 2.0, 1.0], [3.0, 2.5, 2.5]]) == (1, 2)
    assert first_rise([[3.0, 3.1, 1.0], [3.0, 2.5, 2.6]]) == (0, 1)


def test_largest_miss_is_that_of_the_worst_point() -> None:
    law = SizeLaw(np.array([0.0, 0.0]), np.array([1.0, 1.0]), np.array([2.0, 1.0]))
    assert law.largest_miss([1e6, 1e7], [[2.0, 2.1], [0.7, 1.0]]) == pytest.approx(0.3)
