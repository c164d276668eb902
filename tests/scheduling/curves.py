"""Simulated loss curves with a known end."""

import numpy as np


def power_law(rng, n, m, noise, seen=1.0):
    """Noisy curves [n, m] over the first `seen` share of training; steps, losses, final, end."""
    steps = np.arange(1, m + 1) * 50.0
    final = 50 * m / seen
    A = rng.uniform(0.1, 0.6, (n, 1))
    beta = rng.uniform(0.1, 1.2, (n, 1))
    E = rng.uniform(1, 3, (n, 1))
    losses = A * (steps / final) ** -beta + E + noise * rng.normal(size=(n, m))
    return steps, losses, final, (A + E)[:, 0]


def pruning(rng, n, m, noise, total=64):
    """The model shrinks from 5e9 to 1e9 parameters over the first fifth of `total` evaluations."""
    steps = np.arange(1, m + 1) * 50.0
    final = total * 50.0
    params = 5e9 + (1e9 - 5e9) * np.minimum(steps / (0.2 * final), 1)
    A, alpha = rng.uniform(0.2, 0.5, (n, 1)), rng.uniform(0.2, 0.8, (n, 1))
    beta, E = rng.uniform(0.1, 0.6, (n, 1)), rng.uniform(1, 2, (n, 1))
    losses = A * (params / 1e9) ** -alpha * (steps / final) ** -beta + E
    return steps, params, losses + noise * rng.normal(size=losses.shape), (A + E)[:, 0]


def damaged(rng, n, m, noise, total=64):
    """Pruning by no law: damage grows with the sparsity and heals afterwards."""
    x = np.arange(1, m + 1) / total
    params = 5e9 + (1e9 - 5e9) * np.minimum(x / 0.2, 1)
    unhurt = rng.uniform(1, 2.5, (n, 1))
    damage, shape = rng.uniform(0.3, 2, (n, 1)), rng.uniform(1, 3, (n, 1))
    healed, pace = rng.uniform(0.5, 0.9, (n, 1)), rng.uniform(0.02, 0.15, (n, 1))
    power = rng.uniform(0.4, 1.2, (n, 1))

    def exact(x):
        healing = healed * (1 + np.maximum(x - 0.2, 0) / pace) ** -power
        return unhurt + damage * np.minimum(x / 0.2, 1) ** shape * (1 - healed + healing)

    noisy = exact(x) + noise * rng.normal(size=(n, m))
    return x * total * 50, params, noisy, exact(np.ones(1))[:, 0]


def misspecified(rng, n, m, noise, seen=1.0):
    """Thirds of n curves: two power laws, a jump, a plateau; steps, losses, final, end."""
    x = np.append(np.arange(1, m + 1) / m * seen, 1.0)
    third = (n // 3, 1)
    A, beta = rng.uniform(0.1, 0.6, (3, *third)), rng.uniform(0.1, 0.8, (3, *third))
    E = rng.uniform(1, 3, (3, *third))
    two = A[0] * x ** -beta[0] + rng.uniform(0.02, 0.15, third) * x ** -rng.uniform(
        0.05, 0.3, third
    )
    jump = rng.uniform(-0.05, 0.05, third) * (x > rng.uniform(0.1, 0.6, third))
    kink = rng.uniform(0.1, 0.5, third)
    curves = [two + E[0], A[1] * x ** -beta[1] + E[1] + jump]
    curves += [A[2] * np.minimum(x, kink) ** -beta[2] + E[2]]
    exact = np.concatenate(curves)
    losses = exact[:, :-1] + noise * rng.normal(size=(len(exact), m))
    return x[:-1] * 50 * m, losses, 50.0 * m, exact[:, -1]


def own_data(rng, n, m, noise, seen=1.0, walk=1.2):
    """Warm-started curves in each domain's own data, for shares that wander.

    Returns amounts [n, m] from 0 on (1 is all training), losses, final amounts if the rest of
    training gives each domain a seventh, and losses there.
    """
    factor = np.exp(walk * np.sqrt(seen / m) * np.cumsum(rng.normal(size=(n, m - 1)), axis=1))
    share = np.exp(rng.uniform(np.log(0.02), np.log(0.6), (n, 1))) * np.clip(factor, 1 / 7, 7)
    amounts = np.column_stack([np.zeros(n), np.cumsum(share * seen / (m - 1), axis=1)])
    final = amounts[:, -1:] + (1 - seen) / 7
    x0 = np.exp(rng.uniform(np.log(0.003), np.log(0.3), (n, 1)))
    fall, beta = rng.uniform(0.05, 1, (n, 1)), rng.uniform(0.1, 1, (n, 1))
    E = rng.uniform(1, 3, (n, 1))
    A = fall / (x0**-beta - (x0 + 1 / 7) ** -beta)
    losses = A * (amounts + x0) ** -beta + E + noise * rng.normal(size=amounts.shape)
    return amounts, losses, final[:, 0], (A * (final + x0) ** -beta + E)[:, 0]


def pruned_own_data(rng, n, m, noise, total=64):
    """Like `own_data`, while the model shrinks from 5e9 to 1e9 parameters in the first fifth.

    Returns amounts, params [m], losses, final amounts and losses there.
    """
    done = np.arange(m) / total
    params = 5e9 + (1e9 - 5e9) * np.minimum(done / 0.2, 1)
    amounts, _, _, _ = own_data(rng, n, m, 0.0, done[-1])
    final = amounts[:, -1:] + (1 - done[-1]) / 7
    x0 = np.exp(rng.uniform(np.log(0.003), np.log(0.3), (n, 1)))
    A, alpha = rng.uniform(0.2, 0.5, (n, 1)), rng.uniform(0.2, 0.8, (n, 1))
    beta, E = rng.uniform(0.1, 0.8, (n, 1)), rng.uniform(1, 2, (n, 1))
    losses = A * (params / 1e9) ** -alpha * ((amounts + x0) / (final + x0)) ** -beta + E
    return (
        amounts,
        params,
        losses + noise * rng.normal(size=losses.shape),
        final[:, 0],
        (A + E)[:, 0],
    )
