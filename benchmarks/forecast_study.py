"""How good loss forecasts and their intervals are, on simulated curves whose end is known.

Five studies, each printed as a Markdown table; the curves are the same in every run.

1. Coverage and half-width of the 90% intervals on power laws, the curves they are made for.
2. Errors of forecasts and of what is simpler, and coverage, on power laws and on curves that are
   none, after 20, 40, 60 and 100% of training.
3. Errors of DRPruning's reference loss, from the first forecast to the end of a phase.
4. Coverage and errors of forecasts with a warm start, in each domain's own data, for an equal share
   in the rest of training.
5. Errors of these for several assumptions of how much other domains' data counts.

Losses are in nats. Constant P stands for continued pretraining; in pruning P falls to a fifth over
the first 20% of training. Noise is the standard deviation of one evaluation.

    OMP_NUM_THREADS=1 python benchmarks/forecast_study.py [--study warm]
"""

import argparse
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import cleandoc
from typing import get_args
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from drpruning.scheduling import PAPER_SETTINGS, DRPruning, LossForecast, fit_loss_curves
from drpruning.scheduling import forecast_reference as robust
from drpruning.scheduling.curve_fit import Curves, fit_curves
from drpruning.scheduling.forecast_reference import ReferenceRule

Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

FINAL_STEP = 3200
SOURCE_PARAMS, FINAL_PARAMS = 5e9, 1e9
AT_SIZE = 1.05 * FINAL_PARAMS
WARMUP = 0.2  # share of training in which the parameters fall
NOISES = (1e-3, 3e-3, 1e-2)
EVALUATIONS, UPDATES = 64, 32  # of a phase, in studies 2 and 3
NEW, FEWEST = 8, 12  # evaluations in which an event is new; curves worth a row
TRUSTED = 0.5  # the smallest quality that DRPruning takes by default


@dataclass(frozen=True)
class Simulated:
    """n loss curves of m evaluations.

    Attributes:
        share: Share of training done at each evaluation [m].
        losses: Noisy losses [n, m].
        params: Number of parameters [m], None where it is constant.
        end: Loss at the end of training, without noise [n].
        event: Share of training at which the course changes [n], NaN where it does not.
    """

    share: Array
    losses: Array
    params: Array | None
    end: Array
    event: Array

    def fit(self, seen: int | None = None) -> LossForecast:
        """Forecast from the first evaluations."""
        params = None if self.params is None else self.params[:seen]
        final_params = None if params is None else FINAL_PARAMS
        steps = self.share[:seen] * FINAL_STEP
        return fit_loss_curves(steps, self.losses[:, :seen], FINAL_STEP, params, final_params)

    def smallest(self, seen: int | None = None, *, at_size: bool) -> Array:
        """The smallest loss so far [n]: of all, or of models of final size, inf without any."""
        losses = self.losses[:, :seen]
        if at_size and self.params is not None:
            losses = np.where(self.params[:seen] <= AT_SIZE, losses, np.inf)
        smallest: Array = losses.min(axis=1)
        return smallest


# --- curves --------------------------------------------------------------------------------------
# A family takes a generator, shares of training [m] and a number of curves n, and gives noiseless
# losses [n, m], parameters [m] or None, and events [n].

Course = tuple[Array, Array | None, Array]


def drawn(rng: np.random.Generator, n: int, *ranges: tuple[float, float]) -> list[Array]:
    return [rng.uniform(low, high, (n, 1)) for low, high in ranges]


def none(n: int) -> Array:
    return np.full(n, np.nan)


def power_law(rng: np.random.Generator, x: Array, n: int) -> Course:
    """Falls by 0.1 to 2 nats from a 64th of training to its end."""
    fall, beta, E = drawn(rng, n, (0.1, 2), (0.1, 1.2), (1, 3))
    return fall * (x**-beta - 1) / (64**beta - 1) + E, None, none(n)


def two_power_laws(rng: np.random.Generator, x: Array, n: int) -> Course:
    return power_law(rng, x, n)[0] + power_law(rng, x, n)[0], None, none(n)


def jump(rng: np.random.Generator, x: Array, n: int) -> Course:
    """Up or down by at most 0.05 at once, as after a restart."""
    height, event = drawn(rng, n, (-0.05, 0.05), (0.1, 0.9))
    return power_law(rng, x, n)[0] + height * (x > event), None, event[:, 0]


def plateau(rng: np.random.Generator, x: Array, n: int) -> Course:
    """Learning stops."""
    (event,) = drawn(rng, n, (0.1, 0.9))
    return power_law(rng, np.minimum(x, event), n)[0], None, event[:, 0]


def shrinking(x: Array) -> Array:
    """Number of parameters [m]."""
    return SOURCE_PARAMS + (FINAL_PARAMS - SOURCE_PARAMS) * np.minimum(x / WARMUP, 1)


def sized_power_law(rng: np.random.Generator, x: Array, params: Array, n: int) -> Array:
    A, alpha, beta, E = drawn(rng, n, (0.2, 0.5), (0.2, 0.8), (0.1, 0.6), (1, 2))
    losses: Array = A * (params / FINAL_PARAMS) ** -alpha * x**-beta + E
    return losses


def pruning_law(rng: np.random.Generator, x: Array, n: int) -> Course:
    params = shrinking(x)
    return sized_power_law(rng, x, params, n), params, none(n)


def bump(rng: np.random.Generator, x: Array, n: int) -> Course:
    """Damage grows with the sparsity; a part of it heals as a power of the time since."""
    start, damage, shape = drawn(rng, n, (1, 2.3), (0.3, 2), (1, 3))
    healing, pace, beta = drawn(rng, n, (0.5, 0.9), (0.02, 0.15), (0.4, 1.2))
    left = 1 - healing + healing * (1 + np.maximum(x - WARMUP, 0) / pace) ** -beta
    return start + damage * np.minimum(x / WARMUP, 1) ** shape * left, shrinking(x), none(n)


def overshoot(rng: np.random.Generator, x: Array, n: int) -> Course:
    """For a while the masks close more than they should: by a fifth of the parameters."""
    params = shrinking(x) * (1 - 0.2 * np.exp(-(((x - 1.1 * WARMUP) / 0.05) ** 2)))
    return sized_power_law(rng, x, params, n), params, none(n)


def white(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape)


def autocorrelated(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Variance 1, correlation 0.6 from one evaluation to the next."""
    noise = rng.standard_normal(shape)
    for i in range(1, shape[1]):
        noise[:, i] = 0.6 * noise[:, i - 1] + 0.8 * noise[:, i]
    return noise


def spiky(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """One evaluation in twenty is higher by 10 to 100 times the noise."""
    spikes = (rng.random(shape) < 0.05) * rng.uniform(10, 100, shape)
    return white(rng, shape) + spikes


Family = Callable[[np.random.Generator, Array, int], Course]
Noise = Callable[[np.random.Generator, tuple[int, ...]], Array]

FAMILIES: dict[str, tuple[Family, Noise]] = {
    "power law": (power_law, white),
    "two power laws": (two_power_laws, white),
    "jump": (jump, white),
    "plateau": (plateau, white),
    "spikes": (power_law, spiky),
    "autocorrelated": (power_law, autocorrelated),
    "pruning: law": (pruning_law, white),
    "pruning: bump": (bump, white),
    "pruning: overshoot": (overshoot, white),
}


def simulate(name: str, n: int, m: int, seen: float, noise: float) -> Simulated:
    """m evaluations, evenly spread over the first `seen` share of training."""
    seed = [*name.encode(), n, m, round(1000 * seen)]
    rng = np.random.default_rng(seed)
    family, shape_of_noise = FAMILIES[name]
    share = seen * np.arange(1, m + 1) / m
    course, params, event = family(rng, np.append(share, 1.0), n)
    losses = course[:, :-1] + noise * shape_of_noise(rng, (n, m))
    if params is not None:  # as counted from masks that are being trained
        params = params[:-1] * (1 + 1e-3 * rng.standard_normal(m))
    return Simulated(share, losses, params, course[:, -1], event)


# --- studies -------------------------------------------------------------------------------------

Row = Sequence[str]
Percent = tuple[float, float]


def covered(fit: LossForecast, end: Array, rows: slice | BoolArray = slice(None)) -> Percent:
    """Of the curves that have an interval, how many end in it; and how many have one."""
    told = np.isfinite(fit.low[rows])
    inside = (fit.low <= end)[rows] & (end <= fit.high)[rows]
    return 100 * float(inside[told].mean()), 100 * float(told.mean())


def three(error: Array) -> str:
    """Median, 90th and 95th percentile, if there are enough values."""
    if len(error) < FEWEST:
        return "-"
    return " / ".join(f"{value:.4f}" for value in np.quantile(error, (0.5, 0.9, 0.95)))


def coverage(n: int) -> Iterator[Row]:
    """Percent of the true ends in the interval, median half-width; `!` outside 85 to 95.

    `of` how many percent, where not all curves have an interval.
    """
    yield ["curves", "evaluations", "seen", *(f"noise {noise:g}" for noise in NOISES)]
    cases = [
        ("power law", (4, 5, 6, 8, 12, 20, 32, 64), (0.1, 0.2, 0.4, 1.0)),
        ("pruning: law", (8, 12, 20, 32, 64), (0.1, 0.2, 0.4, 1.0)),
    ]
    for name, evaluations, shares in cases:
        for m, seen in itertools.product(evaluations, shares):
            cells = []
            for noise in NOISES:
                curves = simulate(name, n, m, seen, noise)
                fit = curves.fit()
                inside, told = covered(fit, curves.end)
                half = np.nanmedian(fit.high - fit.low) / 2
                mark = "" if 85 <= inside <= 95 else " !"
                few = "" if told > 99 else f" of {told:.0f}%"
                cells.append(f"{inside:.1f}{few} ±{half:.4f}{mark}")
            yield [name, str(m), f"{seen:.0%}", *cells]


def errors(n: int) -> Iterator[Row]:
    """Absolute errors, median / 90th / 95th percentile.

    Forecast: what `fit_loss_curves` says. Used: what DRPruning would take as its first reference
    loss: the forecast, at most the smallest loss of a model of final size; where the quality is
    below 0.5, that smallest loss alone (curves without either are left out). Worst: by how much the
    error of `used` exceeds that of the smallest loss at most. Trusted: curves with a quality of at
    least 0.5. Coverage: of the 90% interval. Changes of course are still to come, new (in the
    newest 8 evaluations) or past.
    """
    yield [
        *("curves", "noise", "seen", "forecast", "used", "smallest loss", "newest loss"),
        *("worst", "trusted", "coverage"),
    ]
    for name, noise, seen in itertools.product(FAMILIES, NOISES[1:], (0.2, 0.4, 0.6, 1.0)):
        curves = simulate(name, n, EVALUATIONS, 1.0, noise)
        m = int(seen * EVALUATIONS)
        fit = curves.fit(m)
        for label, rows in before_and_after(name, curves.event, seen):
            yield [label, f"{noise:g}", f"{seen:.0%}", *error_cells(curves, fit, m, rows)]


def before_and_after(name: str, event: Array, seen: float) -> Iterator[tuple[str, BoolArray]]:
    """The rows whose event is still to come, is in the newest evaluations, or is past."""
    if np.isnan(event).all():
        yield name, np.ones(len(event), dtype=bool)
        return
    told = seen - NEW / EVALUATIONS
    groups = {"to come": event > seen, "new": (event > told) & (event <= seen)}
    for when, rows in (groups | {"past": event <= told}).items():
        if rows.sum() >= FEWEST:
            yield f"{name} {when}", rows


def error_cells(curves: Simulated, fit: LossForecast, m: int, rows: BoolArray) -> Iterator[str]:
    at_size = curves.smallest(m, at_size=True)
    trusted = fit.quality >= TRUSTED
    used = np.minimum(np.where(trusted, fit.forecast, np.inf), at_size)
    smallest = curves.smallest(m, at_size=False)
    estimates = (fit.forecast, used, smallest, curves.losses[:, m - 1])
    forecast, of_used, *simpler = np.abs(np.array(estimates) - curves.end)[:, rows]
    usable = np.isfinite(of_used)
    yield from (three(error) for error in (forecast, of_used[usable], *simpler))
    yield f"{np.max((of_used - simpler[0])[usable]):.4f}" if usable.any() else "-"
    yield f"{trusted[rows].mean():.0%}"
    yield f"{covered(fit, curves.end, rows)[0]:.0f}%"


def references(n: int) -> Iterator[Row]:
    """Absolute errors of the reference loss at all updates from 20% of training on.

    Median / 90th / 95th percentile over curves and updates. Paper: the smallest of the forecasts so
    far, each from one fit to all points, whatever it is like, and at most the smallest loss seen of
    a model of any size. Minimum (the default), credible, latest: DRPruning with this
    `reference_rule`. Smallest loss: the smallest seen so far, of any size.
    """
    yield ["curves", "noise", "paper", *get_args(ReferenceRule), "smallest loss"]
    for name, noise in itertools.product(FAMILIES, NOISES[1:]):
        curves = simulate(name, n, UPDATES, 1.0, noise)
        updates = range(int(np.ceil(WARMUP * UPDATES)), UPDATES + 1)
        tracks = {"paper": by_the_paper(curves, updates)}
        with patch.object(robust, "fit_loss_curves", remembered(fit_loss_curves)):
            tracks |= {rule: by_policy(curves, rule) for rule in get_args(ReferenceRule)}
        tracks["smallest loss"] = [curves.smallest(m, at_size=False) for m in updates]
        yield [name, f"{noise:g}", *(three_of_track(t, curves.end) for t in tracks.values())]


def by_the_paper(curves: Simulated, updates: Iterable[int]) -> list[Array]:
    """The reference losses [n] at each update: a running minimum, of bounded forecasts alone."""
    log_t = np.broadcast_to(np.log(curves.share), curves.losses.shape)
    log_p = np.zeros_like(log_t)
    if curves.params is not None:
        log_p = log_p + np.log(curves.params / FINAL_PARAMS)
    reference = np.full(len(curves.end), np.inf)
    track = []
    for m in updates:
        seen = np.ones((len(reference), m), dtype=bool)
        points = Curves.of(curves.losses[:, :m], seen, log_t[:, :m], log_p[:, :m])
        with np.errstate(all="ignore"):
            forecast = fit_curves(points).end
        bounded = np.clip(forecast, 0, curves.smallest(m, at_size=False))
        reference = np.fmin(reference, bounded)
        track.append(reference)
    return track


def by_policy(curves: Simulated, rule: ReferenceRule) -> list[Array]:
    """The reference losses [n] at each update, NaN where there is none; a curve is a domain."""
    names = [str(i) for i in range(len(curves.end))]
    final_params = None if curves.params is None else FINAL_PARAMS
    settings = PAPER_SETTINGS | {"min_quality": 0.5, "reference_rule": rule}
    policy = DRPruning(dict.fromkeys(names, 1 / len(names)), FINAL_STEP, final_params, **settings)
    track = []
    for i, share in enumerate(curves.share):
        losses = dict(zip(names, curves.losses[:, i].tolist(), strict=True))
        params = None if curves.params is None else float(curves.params[i])
        decision = policy.update(round(share * FINAL_STEP), losses, params)
        if share >= WARMUP:
            known = decision.reference_loss or {}
            track.append(np.array([known.get(name, np.nan) for name in names]))
    return track


def three_of_track(track: Sequence[Array], end: Array) -> str:
    error = np.abs(np.array(track) - end)
    missing = np.isnan(error).mean()
    told = three(error[~np.isnan(error)])
    return told if not missing else f"{told} (none at {missing:.1%})"


def remembered(fit: Callable[..., LossForecast]) -> Callable[..., LossForecast]:
    """The same fits for policies that differ only in what they make of them."""

    @cache
    def from_bytes(*parts: tuple[bytes, tuple[int, ...]]) -> LossForecast:
        steps, losses, final_step, params, final_params = (
            np.frombuffer(data).reshape(shape) for data, shape in parts
        )
        given = (None, None) if np.isnan(final_params) else (params, float(final_params))
        return fit(steps, losses, float(final_step), *given)

    def remembering(*arguments: npt.ArrayLike | None) -> LossForecast:
        arrays = [np.asarray(np.nan if a is None else a, dtype=np.float64) for a in arguments]
        return from_bytes(*((a.tobytes(), a.shape) for a in arrays))

    return remembering


# --- own data ------------------------------------------------------------------------------------

SHARES = np.array([0.67, 0.15, 0.045, 0.045, 0.045, 0.025, 0.02])  # of the paper's seven domains
WIDEST = 7.0  # factor by which a share changes at most
TRANSFERS = (0.0, 0.05, 0.1, 0.2, 0.3)


@dataclass(frozen=True)
class World:
    """A run of n domains under shares that change.

    Attributes:
        own: Data of each domain at m evaluations [n, m], the first at 0; 1 is all training.
        losses: Noisy losses [n, m].
        end: Loss without noise if the rest of training gave every domain the same share [n].
    """

    own: Array
    losses: Array
    end: Array

    def effective(self, transfer: float, seen: float) -> tuple[Array, Array]:
        """Amounts [n, m] and final amounts [n] if this part of other domains' data counts."""
        amounts = counted(self.own, transfer)
        equal = 1 / len(self.own)
        return amounts, amounts[:, -1] + (1 - seen) * (equal + transfer * (1 - equal))

    def fit(self, transfer: float, seen: float, *, warm_start: bool = True) -> LossForecast:
        """Forecast the loss at an equal share."""
        amounts, final = self.effective(transfer, seen)
        return fit_loss_curves(amounts, self.losses, final, warm_start=warm_start)


def counted(own: Array, transfer: float | Array) -> Array:
    """Effective data: a domain's own and a part of all other."""
    total: Array = own + transfer * (own.sum(axis=0) - own)
    return total


def world(
    rng: np.random.Generator, m: int, seen: float, noise: float, transfer: float, spread: float
) -> World:
    """Seven domains; each transfer is drawn from `transfer` times 1 - spread to 1 + spread.

    Shares wander from the paper's by up to a factor of seven. The warm start is from 0.3 to 30% of
    all training; a domain still falls by 0.05 to 1 nats until the end under equal shares.
    """
    n = len(SHARES)
    walk = np.cumsum(rng.standard_normal((n, m - 1)) * 1.2 * np.sqrt(seen / m), axis=1)
    shares = SHARES[:, None] * np.clip(np.exp(walk), 1 / WIDEST, WIDEST)
    own = np.cumsum(shares / shares.sum(axis=0) * seen / (m - 1), axis=1)
    own = np.column_stack([np.zeros(n), own])
    parts = transfer * rng.uniform(1 - spread, 1 + spread, (n, 1))
    x0, (fall, beta, E) = (
        np.exp(drawn(rng, n, np.log([0.003, 0.3]))[0]),
        drawn(rng, n, (0.05, 1), (0.1, 1), (1, 3)),
    )
    equal = (1 + parts * (n - 1)) / n
    A = fall / (x0**-beta - (x0 + equal) ** -beta)
    x = counted(own, parts)
    final = x[:, -1:] + (1 - seen) * equal
    exact = A * (np.column_stack([x, final]) + x0) ** -beta + E
    return World(own, exact[:, :-1] + noise * rng.standard_normal((n, m)), exact[:, -1])


def worlds(
    count: int, m: int, seen: float, noise: float, transfer: float = 0.0, spread: float = 0.0
) -> list[World]:
    seed = [m, round(1000 * seen), round(1e6 * noise), round(1000 * transfer), round(10 * spread)]
    rng = np.random.default_rng(seed)
    return [world(rng, m, seen, noise, transfer, spread) for _ in range(count)]


def warm(n: int) -> Iterator[Row]:
    """Forecasts at an equal share, of domains that start warm and whose shares change.

    Coverage of the 90% interval in percent (`!` outside 85 to 95) and its median half-width. Error
    (median / 90th / 95th percentile) of the forecast, of that of a law without a warm start, and of
    the smallest loss so far. Cut: curves of which
    first points were taken for another curve.
    """
    yield [
        *("evaluations", "seen", "noise", "coverage", "forecast", "without warm start"),
        *("smallest loss", "trusted", "cut"),
    ]
    for m, seen, noise in itertools.product((8, 16, 32, 64), (0.2, 0.4, 0.6), NOISES):
        runs = worlds(max(n // len(SHARES), 1), m, seen, noise)
        own, losses = (np.concatenate([getattr(r, f) for r in runs]) for f in ("own", "losses"))
        end = np.concatenate([r.end for r in runs])
        final = own[:, -1] + (1 - seen) / len(SHARES)
        fit = fit_loss_curves(own, losses, final, warm_start=True)
        cold = fit_loss_curves(own, losses, final)
        inside, _ = covered(fit, end)
        half = np.nanmedian(fit.high - fit.low) / 2
        estimates = (fit.forecast, cold.forecast, losses.min(axis=1))
        yield [
            *(str(m), f"{seen:.0%}", f"{noise:g}"),
            f"{inside:.1f} ±{half:.4f}{'' if 85 <= inside <= 95 else ' !'}",
            *(three(np.abs(estimate - end)) for estimate in estimates),
            f"{np.mean(fit.quality >= TRUSTED):.0%}",
            f"{np.mean(fit.first_step > 0):.1%}",
        ]


def transfer(n: int) -> Iterator[Row]:
    """Errors of forecasts at an equal share if a fixed part of other domains' data is counted.

    `fitted`: the part, one for all domains of a world, whose fits are the most likely. Mean of the
    absolute error, and of what is left of it less the world's mean error, which changes no ratio.
    The true part is within half of itself from domain to domain. 32 evaluations, noise 3e-3. Then
    the share of worlds for which each part is the fitted one, and coverage.
    """
    assumed = [f"{part:g}" for part in TRANSFERS]
    yield ["true", "seen", *assumed, "fitted", "fitted how often", "coverage"]
    for part, seen in itertools.product((0.0, 0.1, 0.3), (0.2, 0.4, 0.6)):
        runs = worlds(max(n // len(SHARES), 1), 32, seen, 3e-3, part, 0.5)
        end = np.array([run.end for run in runs])
        misses, unlikely, inside = [], [], []
        for assumption in TRANSFERS:
            parts = [run.effective(assumption, seen) for run in runs]
            amounts, final = (np.concatenate(some) for some in zip(*parts, strict=True))
            losses = np.concatenate([run.losses for run in runs])
            fit = fit_loss_curves(amounts, losses, final, warm_start=True)
            misses.append(fit.forecast.reshape(end.shape) - end)
            unlikely.append(np.log(fit.objective).reshape(end.shape).sum(axis=1))
            inside.append(f"{covered(fit, end.ravel())[0]:.0f}")
        chosen = np.argmin(unlikely, axis=0)
        misses.append(np.array(misses)[chosen, np.arange(len(runs))])
        often = np.bincount(chosen, minlength=len(TRANSFERS)) / len(runs)
        yield [
            *(f"{part:g}", f"{seen:.0%}"),
            *(
                f"{np.abs(m).mean():.4f}, {np.abs(m - m.mean(axis=1, keepdims=True)).mean():.4f}"
                for m in misses
            ),
            " / ".join(f"{share:.0%}" for share in often),
            " / ".join(inside),
        ]


# --- tables --------------------------------------------------------------------------------------

STUDIES: dict[str, tuple[Callable[[int], Iterator[Row]], int]] = {
    "coverage": (coverage, 300),
    "errors": (errors, 200),
    "references": (references, 50),
    "warm": (warm, 350),
    "transfer": (transfer, 350),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", choices=STUDIES, help="only this one")
    parser.add_argument("--curves", type=int, help="of each kind, instead of its own number")
    return parser.parse_args()


def main() -> None:
    args = parse()
    for name, (study, curves) in STUDIES.items():
        if args.study in (None, name):
            n = args.curves or curves
            print(f"\n## {name}, {n} curves of each kind\n\n{cleandoc(study.__doc__ or '')}\n")
            for i, row in enumerate(study(n)):
                print(f"| {' | '.join(row)} |", flush=True)
                if i == 0:
                    print("|---" * len(row) + "|")


if __name__ == "__main__":
    main()
