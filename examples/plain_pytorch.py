"""Data scheduling in a plain PyTorch loop: learning three waves, one harder than the other."""

import torch
from torch import Tensor, nn

from drpruning.data import Mixture
from drpruning.scheduling import DRPruning

STEPS, EVALUATE_EVERY, BATCH = 600, 30, 32


def wave(frequency: float, count: int) -> tuple[Tensor, Tensor]:
    """Inputs [count, 2], place and frequency, and targets [count, 1]."""
    x = 2 * torch.rand(count, 1) - 1
    return torch.cat([x, torch.full_like(x, frequency)], dim=1), torch.sin(3 * frequency * x)


torch.manual_seed(0)
train = {name: wave(f, 2000) for name, f in (("slow", 0.5), ("medium", 1.0), ("fast", 2.0))}
validation = {name: wave(float(x[0, 1]), 500) for name, (x, _) in train.items()}
model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
policy = DRPruning(dict.fromkeys(train, 1 / 3), total_steps=STEPS, floor=0.1, tau=0.05)
mixture = Mixture({name: len(x) for name, (x, _) in train.items()}, BATCH, seed=0)

while mixture.step < STEPS:
    segment = mixture.plan_segment(policy.ratio, EVALUATE_EVERY)
    for index in range(segment.steps):
        rows = [(mixture.domains[d], i) for d, i in zip(*segment.batch(index), strict=True)]
        x, y = (torch.stack([train[name][part][i] for name, i in rows]) for part in (0, 1))
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    mixture.advance(segment)
    with torch.no_grad():
        losses = {d: nn.functional.mse_loss(model(x), y).item() for d, (x, y) in validation.items()}
    policy.update(mixture.step, losses, shares=segment.realised_share)
    print(mixture.step, *(f"{d}: {losses[d]:.4f}, {policy.ratio[d]:.0%}" for d in losses))  # noqa: T201
