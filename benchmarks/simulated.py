"""Simulated training runs ("worlds") in which every domain's loss follows a known law of its data.

The loss of domain i is `E_i + A_i * (C_i + X_i)**-beta_i`. X_i is the effective data since the
start: the domain's own, plus a part of the data of every other domain. C_i is what the model knows
of the domain at the start, as a pruned model does. Data is counted in lengths of the training, so
the data of all domains together is 1 at the end.

A policy under test is the real class of `drpruning.scheduling`. It sees what a training run shows
it, noisy validation losses, and decides the ratio; its final losses are known without noise.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from drpruning.scheduling import make_policy
from drpruning.scheduling.policy import Policy

Array = npt.NDArray[np.float64]

STEPS = 12_000
"""Optimizer steps of a simulated training: evaluations are at equal, integer distances."""
MOST_REPEATED = 15.39
"""R*_D of Muennighoff et al. 2023 (arXiv 2305.16264, section 5): repeating data without end is
worth this many times its unique tokens."""
SHAPES = ("skewed", "even", "dirichlet")
DEFECTS = ("noise", "duplicates", "exhausted", "wrong", "unreachable")


@dataclass(frozen=True, kw_only=True)
class World:
    """A simulated training of n domains; arrays are [n] unless said otherwise, losses in nats.

    Attributes:
        kind: What was drawn, for tables.
        seed: Seed of the evaluation noise.
        ratio: Initial ratio.
        E: Loss that no amount of data goes below.
        A: Factor of the part of the loss that data reduces.
        C: Warm start: effective data before the start.
        beta: Exponent of the effective data.
        transfer: Part of the data of domain j that counts for domain i, at [i, j]; diagonal 1.
        unique: Data of a domain before it repeats; infinite where it never does.
        repeats: What repeated data is worth: that of the law of Muennighoff et al., or nothing.
        source: Losses of the larger model that was pruned.
        trained: Losses of a trained model of the target's size.
        given: Reference losses as policies get them, by name; wrong ones differ from the truth.
        evaluations: Number of evaluations, at equal distances from step 0 on.
        noise: Standard deviation of the noise of an evaluation.
    """

    kind: str
    seed: int
    ratio: Array
    E: Array
    A: Array
    C: Array
    beta: Array
    transfer: Array
    unique: Array
    repeats: Literal["decay", "nothing"]
    source: Array
    trained: Array
    given: Mapping[str, Array]
    evaluations: int
    noise: float

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains."""
        return tuple(f"domain{i}" for i in range(len(self.ratio)))

    def losses(self, data: Array) -> Array:
        """Losses without noise after this much data of each domain."""
        effective = np.minimum(data, self.unique)
        if self.repeats == "decay":
            with np.errstate(invalid="ignore"):
                repeated = np.maximum(data / self.unique - 1, 0)
                worth = -np.expm1(-repeated / MOST_REPEATED) * MOST_REPEATED * self.unique
            effective = effective + np.where(repeated > 0, worth, 0)
        x = self.C + self.transfer @ effective
        losses: Array = self.E + self.A * x**-self.beta
        return losses


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a training ended under a policy; losses in nats, without noise.

    Attributes:
        final: Loss of each domain at the end [n].
        ratios: Ratio in force after each evaluation [evaluations, n].
        data: Data of each domain, in lengths of the training [n].
        churn: Mean of `sum |q_new - q_old|` over the evaluations.
        behind: Largest loss above the source model's own.
        average: Mean loss over the domains.
        worst: Largest loss.
        weighted: Mean loss weighted by the initial ratio.
    """

    final: Array
    ratios: Array
    data: Array
    churn: float
    behind: float
    average: float
    worst: float
    weighted: float

    @classmethod
    def of(
        cls, ratio: Array, source: Array, final: Array, ratios: Array, churn: float
    ) -> "Outcome":
        """Work out the figures, given the initial ratio and the source model's losses [n]."""
        return cls(
            final=final,
            ratios=ratios,
            data=ratios.mean(axis=0),
            churn=churn,
            behind=float((final - source).max()),
            average=float(final.mean()),
            worst=float(final.max()),
            weighted=float(ratio @ final),
        )


def follow(
    policy: Policy,
    evaluations: int,
    evaluate: Callable[[int], Array],
    train: Callable[[Array], None],
) -> tuple[Array, float]:
    """Evaluate and train in turn, as the policy decides.

    Args:
        policy: Made for a training of `STEPS` steps.
        evaluations: How many; the training between two of them is as long as that after the last.
        evaluate: Gives the losses [n] at the evaluation of this number.
        train: Trains at this ratio [n] until the next one.

    Returns:
        The ratios in force [evaluations, n] and the churn.
    """
    before = np.array(list(policy.ratio.values()))
    ratios, churn = [], 0.0
    for i in range(evaluations):
        losses = dict(zip(policy.domains, evaluate(i).tolist(), strict=True))
        decision = policy.update(STEPS * i // evaluations, losses)
        ratio = np.array([decision.ratio[d] for d in policy.domains])
        churn += float(np.abs(ratio - before).sum())
        train(ratio)
        ratios.append(ratio)
        before = ratio
    return np.array(ratios), churn / evaluations


def run(world: World, make: Callable[[World], Policy]) -> Outcome:
    """Train in a world under the policy that `make` builds for it."""
    shape = (world.evaluations, len(world.ratio))
    noise = world.noise * np.random.default_rng([world.seed, 1]).standard_normal(shape)
    data = np.zeros_like(world.ratio)

    def evaluate(i: int) -> Array:
        return np.asarray(world.losses(data) + noise[i])

    def train(ratio: Array) -> None:
        nonlocal data
        data = data + ratio / world.evaluations

    ratios, churn = follow(make(world), world.evaluations, evaluate, train)
    return Outcome.of(world.ratio, world.source, world.losses(data), ratios, churn)


# --- policies under test --------------------------------------------------------------------------


class Setting(Protocol):
    """What a policy is made from: the domains, their initial ratio, known reference losses."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains."""

    @property
    def ratio(self) -> Array:
        """Initial ratio [n]."""

    @property
    def given(self) -> Mapping[str, Array]:
        """Reference losses [n] by name."""


@dataclass(frozen=True)
class Candidate:
    """A policy with settings, built for one world after another; picklable.

    Attributes:
        label: How tables call it.
        policy: Its name in `make_policy`.
        settings: Its settings. `reference_loss` may be `source` or `trained`: that of the world.
        smoothing: Exponent on the initial ratio, as `data.smoothing` has it for sizes; 1 leaves it.
    """

    label: str
    policy: str
    settings: Mapping[str, Any]
    smoothing: float = 1.0

    @classmethod
    def parse(cls, text: str, more: Mapping[str, Any] | None = None) -> "Candidate":
        """Read `NAME` or `NAME:KEY=VALUE,KEY=VALUE`; `more` are settings of every drpruning."""
        name, _, rest = text.partition(":")
        settings = setting_values(rest.split(",")) if rest else {}
        smoothing = float(settings.pop("smoothing", 1.0))
        if name == "drpruning":
            settings = {**(more or {}), **settings}
        if name == "sheared":
            settings = {"reference_loss": "trained", **settings}
        return cls(text, name, settings, smoothing)

    def __call__(self, world: Setting) -> Policy:
        """Build the policy for a world."""

        def named(values: Array) -> dict[str, float]:
            return dict(zip(world.domains, values.tolist(), strict=True))

        ratio = world.ratio**self.smoothing
        settings = dict(self.settings)
        reference = settings.get("reference_loss")
        if isinstance(reference, str):
            settings["reference_loss"] = named(world.given[reference])
        return make_policy(self.policy, named(ratio / ratio.sum()), STEPS, **settings)


def setting_values(pairs: list[str]) -> dict[str, Any]:
    """Read `KEY=VALUE` texts; values are JSON where they can be, and text otherwise."""
    values = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            values[key] = value
    return values


# --- worlds ---------------------------------------------------------------------------------------


def draw(
    kind: str, seed: int, *, domains: int | None = None, evaluations: int | None = None
) -> World:
    """Draw a world.

    Args:
        kind: Shape of the initial ratio and what is wrong, for instance `skewed` or `even+noise`;
            a kind without a shape is skewed.
        seed: Any; the same one gives the same world.
        domains: Number of domains; by default 3 to 30.
        evaluations: Number of evaluations; by default 20 or 60.
    """
    parts = kind.split("+")
    if unknown := [part for part in parts if part not in SHAPES + DEFECTS]:
        raise ValueError(f"no kind {unknown[0]!r}; join some of {', '.join(SHAPES + DEFECTS)}")
    shape = next((part for part in parts if part in SHAPES), "skewed")
    rng = np.random.default_rng([seed, *shape.encode()])
    n = domains or round(math.exp(rng.uniform(math.log(3), math.log(30))))
    ratio = _initial_ratio(rng, shape, n)
    world = _healthy(rng, ratio, evaluations or int(rng.choice([20, 60])))
    world = replace(world, kind=kind, seed=seed)
    # Defects have a generator of their own: with and without one, a world is otherwise the same.
    for part in parts:
        if part in DEFECTS:
            world = _with_defect(world, part, np.random.default_rng([seed, *part.encode()]))
    return world


def _initial_ratio(rng: np.random.Generator, shape: str, n: int) -> Array:
    if shape == "dirichlet":
        ratio = rng.dirichlet(np.ones(n))
    else:
        # Like the ratio of LLaMA's data, .67 .15 .045 .045 .045 .025 .02: a power of the rank.
        ratio = np.arange(1, n + 1) ** -rng.uniform(1.3, 2.2) * rng.lognormal(0, 0.3, n)
        if shape == "even":
            ratio = ratio**0.3
        rng.shuffle(ratio)
    ratio = np.maximum(ratio / ratio.sum(), 0.1 / n**1.5)
    return np.asarray(ratio / ratio.sum())


def _healthy(rng: np.random.Generator, ratio: Array, evaluations: int) -> World:
    """A world of this initial ratio in which nothing is wrong."""
    n = len(ratio)
    kappa = 0.3 * rng.uniform(0, 1) ** 2
    transfer = np.full((n, n), kappa)
    if rng.random() < 0.5:
        transfer *= rng.uniform(0, 2, (n, n))
    np.fill_diagonal(transfer, 1)
    skewed_source = rng.random() < 0.5
    source_shares = ratio if skewed_source else np.full(n, 1 / n)
    # A source that saw more of a domain leaves more of it in the pruned model.
    C = np.exp(rng.uniform(math.log(0.005), math.log(0.3), n)) * np.sqrt(source_shares * n)
    beta, start = rng.uniform(0.15, 0.9, n), rng.uniform(3.5, 5.5, n)
    fall = rng.uniform(0.3, 2.0, n)  # of the loss, from the start to the end at equal shares
    equal = transfer @ np.full(n, 1 / n)
    A = fall / (C**-beta - (C + equal) ** -beta)
    A = np.minimum(A, (start - 0.3) / C**-beta)  # what is left, E, is at least 0.3 nats
    E = start - A * C**-beta
    amount = math.exp(rng.uniform(math.log(3), math.log(10)))
    of_source = (
        E * rng.uniform(0.95, 0.99, n)
        + A * rng.uniform(0.8, 0.95, n) * (transfer @ source_shares * amount) ** -beta
    )
    source = np.minimum(of_source, start - 0.2)
    trained = E + A * (equal * amount) ** -beta
    return World(
        kind="",
        seed=0,
        ratio=ratio,
        E=E,
        A=A,
        C=C,
        beta=beta,
        transfer=transfer,
        unique=np.full(n, math.inf),
        repeats="decay",
        source=source,
        trained=trained,
        given={"source": source, "trained": trained},
        evaluations=evaluations,
        noise=math.exp(rng.uniform(math.log(1e-3), math.log(1e-2))),
    )


def _with_defect(world: World, defect: str, rng: np.random.Generator) -> World:
    """The world with something wrong in one domain; in a quarter of the domains if exhausted."""
    n = len(world.ratio)
    i = int(rng.integers(n))
    if defect == "noise":  # nothing to learn: the loss is high and stays
        A, E, source, trained = (v.copy() for v in (world.A, world.E, world.source, world.trained))
        E[i], A[i] = rng.uniform(5.5, 8), 1e-6
        source[i] = E[i] - rng.uniform(0, 0.1)
        trained[i] = E[i]
        given = {"source": source, "trained": trained}
        return replace(world, A=A, E=E, source=source, trained=trained, given=given)
    if defect == "duplicates":  # very little text, again and again
        unique = world.unique.copy()
        unique[i] = world.ratio[i] * rng.uniform(0.005, 0.02)
        return replace(world, unique=unique)
    if defect == "exhausted":
        unique = world.unique.copy()
        some = rng.permutation(n)[: max(1, n // 4)]
        repeats: Literal["decay", "nothing"] = "decay" if rng.random() < 0.5 else "nothing"
        most = (0.05, 0.5) if repeats == "decay" else (0.5, 1.5)
        unique[some] = world.ratio[some] * rng.uniform(*most, len(some))
        return replace(world, unique=unique, repeats=repeats)
    error = -1.0 if defect == "unreachable" else 0.3 * float(rng.choice([-1, 1]))
    given = {name: losses.copy() for name, losses in world.given.items()}
    for losses in given.values():
        losses[i] += error
    return replace(world, given=given)


def read_world(path: Path, seed: int, evaluations: int | None = None) -> World:
    """Read a world whose constants were fitted to real runs from a JSON file.

    Lists by domain: `ratio`, `E`, `A`, `C`, `beta`, `source`; `kappa` is a number or a matrix.
    Optional: `trained` (without it the source's losses), `unique`, `repeats`, `evaluations` (20)
    and `noise` (3e-3). C and `unique` are in lengths of the training.
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    lists = {k: np.array(values[k], dtype=float) for k in ("ratio", "E", "A", "C", "beta")}
    n = len(lists["ratio"])
    source = np.array(values["source"], dtype=float)
    trained = np.array(values.get("trained", source), dtype=float)
    transfer = np.broadcast_to(np.array(values["kappa"], dtype=float), (n, n)).copy()
    np.fill_diagonal(transfer, 1)
    return World(
        kind=path.stem,
        seed=seed,
        transfer=transfer,
        unique=np.array(values.get("unique", [math.inf] * n), dtype=float),
        repeats=values.get("repeats", "decay"),
        source=source,
        trained=trained,
        given={"source": source, "trained": trained},
        evaluations=evaluations or values.get("evaluations", 20),
        noise=values.get("noise", 3e-3),
        **lists,
    )
