"""What a ratio update costs: loss forecasts, worst-case ratios, whole updates.

Forecasts run in turn with a fit of one start at a time by `torch.optim.LBFGS` in float32, as the
method's first implementation had it, on curves whose end is known. That one takes seconds a domain,
so it fits only the first few domains, and its time is scaled to all. Worst-case ratios run in turn
with a convex solver. Prints one JSON object; `wanted` has the times that are promised, and the
exit status is 1 where one of them is missed.

    python benchmarks/scheduling_speed.py
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import numpy.typing as npt
import torch

from drpruning.scheduling import DRPruning, fit_loss_curves, worst_case_ratio

Array = npt.NDArray[np.float64]

DELTA = 1e-3  # of the Huber loss
FINAL_STEP = 3200
TOKENS_A_STEP = 32 * 4096
SOURCE_PARAMS, FINAL_PARAMS = 6.7e9, 1.3e9
WARMUP = 0.2  # share of the steps in which the parameters fall


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--domains", type=int, default=7)
    parser.add_argument("--evaluations", type=int, default=64)
    parser.add_argument("--noise", type=float, default=3e-3, help="of a loss, in nats")
    parser.add_argument(
        "--baseline-domains", type=int, default=3, help="how many the slow fit gets, of each case"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def milliseconds(seconds: list[float]) -> dict[str, float]:
    return {
        "median": round(1000 * statistics.median(seconds), 3),
        "max": round(1000 * max(seconds), 3),
    }


@dataclass
class Curves:
    """Noisy losses [n, m] at m steps and what they are at the end, without noise [n]."""

    steps: Array
    losses: Array
    params: Array | None
    end: Array


def curves(
    rng: np.random.Generator, n: int, m: int, noise: float, seen: float, *, pruning: bool
) -> Curves:
    steps = np.linspace(0, seen * FINAL_STEP, m + 1)[1:]
    fallen = np.minimum(1, steps / (WARMUP * FINAL_STEP))
    params = SOURCE_PARAMS + (FINAL_PARAMS - SOURCE_PARAMS) * fallen
    falling, exponent, alpha, irreducible = (
        rng.uniform(low, high, (n, 1)) for low, high in ((0.1, 0.6), (0.2, 0.8), (0.1, 0.6), (1, 3))
    )
    shape = falling * (steps / FINAL_STEP) ** -exponent
    if pruning:
        shape = shape * (params / FINAL_PARAMS) ** -alpha
    losses = shape + irreducible + noise * rng.standard_normal((n, m))
    end = (falling + irreducible)[:, 0]
    return Curves(steps, losses, params if pruning else None, end)


def one_start_at_a_time(steps: Array, losses: Array, params: Array | None) -> tuple[float, float]:
    """Forecast and mean Huber loss of one domain; T in tokens, P in final parameters.

    Starts: log A in {0, 10, 20} x log E in {0, 1} x beta in {0, 0.5, 1}, with P also x alpha in
    {0, -0.5}. Ten calls of L-BFGS from each start, 25 more for the best three.
    """
    log_t = torch.tensor(np.log(steps * TOKENS_A_STEP), dtype=torch.float32)
    log_p = torch.zeros_like(log_t)
    if params is not None:
        log_p = torch.tensor(np.log(params / FINAL_PARAMS), dtype=torch.float32)
    target = torch.tensor(losses, dtype=torch.float32)
    alphas = [0.0] if params is None else [0.0, -0.5]

    def predict(theta: torch.Tensor, log_t: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
        exponent = theta[0] - theta[2] * log_t
        if params is not None:
            exponent = exponent - theta[3] * log_p
        return exponent.exp() + theta[1].exp()

    class Fit:
        def __init__(self, start: tuple[float, ...]) -> None:
            self.theta = torch.tensor(start, requires_grad=True)
            self.optimizer = torch.optim.LBFGS([self.theta], lr=1, max_iter=20)
            self.objective, self.best = np.inf, self.theta.detach().clone()

        def closure(self) -> torch.Tensor:
            self.optimizer.zero_grad()
            loss = torch.nn.functional.huber_loss(
                predict(self.theta, log_t, log_p), target, delta=DELTA
            )
            loss.backward()
            return loss

        def run(self, calls: int) -> float:
            for _ in range(calls):
                before = self.theta.detach().clone()
                self.keep(before, self.optimizer.step(self.closure).item())
            self.keep(self.theta.detach().clone(), self.closure().item())
            return self.objective

        def keep(self, theta: torch.Tensor, loss: float) -> None:
            if loss < self.objective:  # later calls can diverge
                self.objective, self.best = loss, theta

    fits = [
        Fit(start)
        for start in itertools.product((0.0, 10.0, 20.0), (0.0, 1.0), (0.0, 0.5, 1.0), alphas)
    ]
    best = sorted(((fit.run(10), i) for i, fit in enumerate(fits)))[:3]
    objective = min(fits[i].run(25) for _, i in best)
    final = torch.tensor(np.log(FINAL_STEP * TOKENS_A_STEP), dtype=torch.float32)
    with torch.no_grad():
        ends = [predict(fits[i].best, final, torch.zeros(())).item() for _, i in best]
    return statistics.mean(ends), objective


def forecasts(args: argparse.Namespace, *, pruning: bool, seen: float) -> dict[str, Any]:
    rng = np.random.default_rng(args.seed)
    data = curves(rng, args.domains, args.evaluations, args.noise, seen, pruning=pruning)
    final_params = FINAL_PARAMS if pruning else None

    def ours() -> Any:
        return fit_loss_curves(data.steps, data.losses, FINAL_STEP, data.params, final_params)

    ours()
    own, slow, found = [], [], []
    for domain in range(args.baseline_domains):
        own += [timed(ours)[0] for _ in range(5)]
        seconds, result = timed(one_start_at_a_time, data.steps, data.losses[domain], data.params)
        slow.append(seconds * args.domains)
        found.append(result)
        own += [timed(ours)[0] for _ in range(5)]
    fit = ours()
    ends, objectives = np.array(found).T
    few = slice(args.baseline_domains)
    return {
        "pruning": pruning,
        "seen_share": seen,
        "milliseconds": milliseconds(own),
        "baseline_milliseconds": round(1000 * statistics.mean(slow)),
        "ratio": round(statistics.mean(slow) / statistics.median(own)),
        "mean_huber_loss": float(f"{fit.objective[few].mean():.3g}"),
        "baseline_mean_huber_loss": float(f"{objectives.mean():.3g}"),
        "forecast_error": round(float(np.abs(fit.forecast - data.end)[few].mean()), 5),
        "baseline_forecast_error": round(float(np.abs(ends - data.end[few]).mean()), 5),
        "all_domains_mean_huber_loss": float(f"{fit.objective.mean():.3g}"),
        "all_domains_forecast_error": round(float(np.abs(fit.forecast - data.end).mean()), 5),
    }


def warm_forecasts(args: argparse.Namespace) -> dict[str, Any]:
    """Fits with a warm start, each domain in its own data, from 0 on, at shares that wander."""
    rng = np.random.default_rng(args.seed)
    n, m, seen = args.domains, args.evaluations, 0.6
    shares = rng.dirichlet(np.full(n, 3.0))[:, None]
    shares = shares * np.exp(np.cumsum(0.1 * rng.standard_normal((n, m - 1)), axis=1))
    amounts = np.cumsum(shares / shares.sum(axis=0) * seen / (m - 1), axis=1)
    amounts = np.column_stack([np.zeros(n), amounts])
    final = amounts[:, -1] + (1 - seen) / n
    fall, beta, E = (rng.uniform(low, high, (n, 1)) for low, high in ((0.1, 1), (0.2, 0.8), (1, 3)))
    offset = np.exp(rng.uniform(np.log(0.01), np.log(0.2), (n, 1)))
    law = E + fall * (np.column_stack([amounts, final]) / offset + 1) ** -beta
    losses = law[:, :-1] + args.noise * rng.standard_normal((n, m))

    def ours() -> Any:
        return fit_loss_curves(amounts, losses, final, warm_start=True)

    fit = ours()
    return {
        "seen_share": seen,
        "milliseconds": milliseconds([timed(ours)[0] for _ in range(20)]),
        "forecast_error": round(float(np.abs(fit.forecast - law[:, -1]).mean()), 5),
    }


def updates(args: argparse.Namespace, n: int, repeats: int, *, pruning: bool) -> dict[str, Any]:
    """A whole update that forecasts from all evaluations before it and its own."""
    rng = np.random.default_rng(args.seed)
    names = [f"domain{i}" for i in range(n)]
    initial = dict(zip(names, rng.dirichlet(np.full(n, 5.0)).tolist(), strict=True))
    data = curves(rng, n, args.evaluations, args.noise, 0.8, pruning=pruning)
    final_params = FINAL_PARAMS if pruning else None

    def evaluation(i: int) -> tuple[int, dict[str, float], float | None]:
        losses = dict(zip(names, data.losses[:, i].tolist(), strict=True))
        return round(data.steps[i]), losses, None if data.params is None else data.params[i]

    before = DRPruning(initial, FINAL_STEP, final_params, forecast_start=1.0)
    for i in range(args.evaluations - 1):
        before.update(*evaluation(i))
    state = before.state_dict()
    seconds = []
    for _ in range(repeats + 1):
        policy = DRPruning(initial, FINAL_STEP, final_params)
        policy.load_state_dict(state)
        spent, decision = timed(policy.update, *evaluation(args.evaluations - 1))
        assert decision.forecast is not None
        seconds.append(spent)
    return {"domains": n, "pruning": pruning, "milliseconds": milliseconds(seconds[1:])}


def ratios(args: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(args.seed)
    n, rho = args.domains, 0.1
    p = rng.dirichlet(np.full(n, 3.0))
    scores = cp.Parameter(n)
    q = cp.Variable(n)
    ball = 0.5 * cp.sum(cp.multiply(p, cp.square(q / p - 1))) <= rho
    problem = cp.Problem(cp.Maximize(scores @ q), [cp.sum(q) == 1, q >= p.min(), ball])

    def solve(values: Array) -> Array:
        scores.value = values
        problem.solve(solver=cp.CLARABEL)
        return np.asarray(q.value)

    solve(rng.standard_normal(n))
    own, solver, lower = [], [], []
    for _ in range(100):
        values = 0.1 * rng.standard_normal(n)
        seconds, exact = timed(worst_case_ratio, values, p, rho)
        own.append(seconds)
        seconds, solved = timed(solve, values)
        solver.append(seconds)
        lower.append((solved - exact) @ values)
    many = 10_000
    wide = rng.dirichlet(np.full(many, 3.0))
    large = [
        timed(worst_case_ratio, 0.1 * rng.standard_normal(many), wide, rho, 0.1 / many)[0]
        for _ in range(50)
    ]
    return {
        "domains": n,
        "milliseconds": milliseconds(own),
        "solver_milliseconds": milliseconds(solver),
        "ratio": round(statistics.median(b / a for a, b in zip(own, solver, strict=True))),
        "solver_objective_above_ours": float(f"{max(lower):.2g}"),
        "10000_domains_milliseconds": milliseconds(large),
    }


def wanted(results: dict[str, Any]) -> dict[str, dict[str, float | bool]]:
    """The promises: medians in milliseconds, and whether each is kept."""
    update, pruning = (entry["milliseconds"]["median"] for entry in results["updates"][:2])
    ratio = results["worst_case_ratio"]
    found = {
        "update": (update, 50),
        "update in pruning": (pruning, 50),
        "fit with a warm start": (results["warm_forecasts"]["milliseconds"]["median"], 40),
        "worst_case_ratio of 10,000 domains": (ratio["10000_domains_milliseconds"]["median"], 5),
    }
    return {
        name: {"milliseconds": median, "at_most": limit, "kept": median <= limit}
        for name, (median, limit) in found.items()
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    results = {
        "forecasts": [
            forecasts(args, pruning=pruning, seen=seen)
            for pruning in (False, True)
            for seen in (0.5, 1.0)
        ],
        "warm_forecasts": warm_forecasts(args),
        "updates": [
            updates(args, n, repeats, pruning=pruning)
            for n, repeats in ((args.domains, 20), (70, 8), (700, 3))
            for pruning in (False, True)
        ],
        "worst_case_ratio": ratios(args),
        "settings": vars(args),
    }
    return results | {"wanted": wanted(results)}


if __name__ == "__main__":
    measured = measure(parse())
    print(json.dumps(measured, indent=1))
    sys.exit(not all(promise["kept"] for promise in measured["wanted"].values()))
