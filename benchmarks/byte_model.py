"""How policies do on a model of some 20,000 weights that predicts the next byte of real text.

    OMP_NUM_THREADS=1 python benchmarks/byte_model.py --seeds 3 --policies equal drpruning sheared

For each seed a source model (four times the hidden units) is trained at equal shares, pruned to the
hidden units with the largest weights, and trained on under each policy, from the same weights and
with the same random numbers. The text is what every Python installation has, in six domains. The
initial ratio is skewed; which domain has which share depends on the seed. Policies, arguments and
table are those of `worlds.py`: `reference_loss=source` stands for the source model's losses, and
`trained` for those of a model of the small size that was trained from scratch ten times as long.
"""

import argparse
import json
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from drpruning.pipeline.demo_text import write_demo_text
from simulated import Array, Candidate, Outcome, follow
from worlds import Results, candidates_of, figures, new_record, shared_arguments, show

SHARES = (0.6, 0.2, 0.08, 0.06, 0.04, 0.02)
CONTEXT, EMBEDDING = 6, 8  # bytes that are seen, numbers for each
HIDDEN = 64
LARGER = 4  # times as many hidden units has the source model
SOURCE_LENGTH, TRAINED_LENGTH = 4, 10  # of the training of the known models, in trainings
BATCH, RATE = 128, 1e-3
VALIDATION = 4096  # bytes of a domain


def read_text() -> dict[str, Tensor]:
    """Bytes of each domain."""
    with tempfile.TemporaryDirectory() as folder:
        names = sorted(write_demo_text(Path(folder)))
        text = {
            name: "\n".join(
                json.loads(line)["text"]
                for line in (Path(folder) / f"{name}.jsonl").open(encoding="utf-8")
            )
            for name in names
        }
    include, library = sysconfig.get_path("include"), sysconfig.get_path("stdlib")
    for name, files in (
        ("headers", Path(include).rglob("*.h")),
        ("encodings", (Path(library) / "encodings").glob("*.py")),
    ):
        text[name] = "\n".join(f.read_text("utf-8", errors="replace") for f in sorted(files))
    return {
        name: torch.frombuffer(bytearray(value.encode()), dtype=torch.uint8).long()
        for name, value in text.items()
        if value
    }


class Model(nn.Module):
    """The next byte from the few before it, by one hidden layer."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, EMBEDDING)
        self.inner = nn.Linear(CONTEXT * EMBEDDING, hidden)
        self.outer = nn.Linear(hidden, 256)

    def forward(self, windows: Tensor) -> Tensor:
        """Loss of each window [b] of `CONTEXT` bytes and the one to predict."""
        inner = self.inner(self.embedding(windows[:, :-1]).flatten(1)).relu()
        return nn.functional.cross_entropy(self.outer(inner), windows[:, -1], reduction="none")

    def pruned(self, hidden: int) -> "Model":
        """The model of the hidden units with the largest products of weights in and out."""
        size = self.inner.weight.norm(dim=1) * self.outer.weight.norm(dim=0)
        kept = size.topk(hidden).indices.sort().values
        small = Model(hidden)
        with torch.no_grad():
            small.embedding.weight.copy_(self.embedding.weight)
            small.inner.weight.copy_(self.inner.weight[kept])
            small.inner.bias.copy_(self.inner.bias[kept])
            small.outer.weight.copy_(self.outer.weight[:, kept])
            small.outer.bias.copy_(self.outer.bias)
        return small


class Training:
    """A model in training on a mixture.

    Args:
        model: Changed in place.
        text: Bytes of each domain; the last of them are for validation.
        steps: Length of the training, over which the learning rate falls to a tenth.
        seed: Of the batches.
    """

    def __init__(self, model: Model, text: Mapping[str, Tensor], steps: int, seed: int) -> None:
        self.model, self.text = model, list(text.values())
        self.optimizer = torch.optim.Adam(model.parameters(), RATE)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1, 0.1, steps)
        self.generator = torch.Generator().manual_seed(seed)

    def train(self, ratio: Array, steps: int) -> None:
        """Take steps whose batches have the domains in this ratio."""
        shares = torch.tensor(ratio).cumsum(0)
        limits = torch.tensor([len(t) - 2 * VALIDATION for t in self.text])
        for _ in range(steps):
            where, which = torch.rand(2, BATCH, generator=self.generator, dtype=torch.float64)
            domain = torch.searchsorted(shares, which).clamp(max=len(self.text) - 1)
            starts = (where * limits[domain]).long()
            windows = torch.empty(BATCH, CONTEXT + 1, dtype=torch.long)
            for i, text in enumerate(self.text):
                own = domain == i
                windows[own] = text[starts[own, None] + torch.arange(CONTEXT + 1)]
            self.optimizer.zero_grad()
            self.model(windows).mean().backward()
            self.optimizer.step()
            self.schedule.step()

    @torch.no_grad()
    def losses(self) -> Array:
        """Validation loss of each domain."""
        windows = (t[-VALIDATION - CONTEXT :].unfold(0, CONTEXT + 1, 1) for t in self.text)
        return np.array([float(self.model(w).mean()) for w in windows])


@dataclass(frozen=True)
class Pruned:
    """A pruned model before it is trained on, and what is known of it; see `simulated.World`."""

    domains: tuple[str, ...]
    ratio: Array
    source: Array
    given: Mapping[str, Array]
    model: Model
    seed: int

    def run(
        self, text: Mapping[str, Tensor], make: Candidate, evaluations: int, steps: int
    ) -> Outcome:
        """Train a copy of the model under a policy."""
        model = Model(HIDDEN)
        model.load_state_dict(self.model.state_dict())
        training = Training(model, text, steps, self.seed + 1)
        ratios, churn = follow(
            make(self),
            evaluations,
            lambda _: training.losses(),
            lambda ratio: training.train(ratio, steps // evaluations),
        )
        return Outcome.of(self.ratio, self.source, training.losses(), ratios, churn)


def prepare(text: Mapping[str, Tensor], steps: int, seed: int) -> Pruned:
    """Train the source model and one of the small size, and prune the source."""
    torch.manual_seed(seed)
    equal = np.full(len(text), 1 / len(text))
    source = Training(Model(LARGER * HIDDEN), text, SOURCE_LENGTH * steps, seed)
    source.train(equal, SOURCE_LENGTH * steps)
    trained = Training(Model(HIDDEN), text, TRAINED_LENGTH * steps, seed)
    trained.train(equal, TRAINED_LENGTH * steps)
    ratio = np.random.default_rng(seed).permutation(SHARES)
    given = {"source": source.losses(), "trained": trained.losses()}
    model = source.model.pruned(HIDDEN)
    return Pruned(tuple(text), ratio, given["source"], given, model, seed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many; default 5")
    parser.add_argument("--steps", type=int, default=600, help="of training; default 600")
    parser.add_argument("--evaluations", type=int, default=20, help="default 20")
    shared_arguments(parser)
    args = parser.parse_args()
    text, candidates = read_text(), candidates_of(args)
    record = new_record(args) | {"seeds": []}

    def all_outcomes() -> Iterator[Results]:
        for seed in range(args.seed, args.seed + args.seeds):
            pruned = prepare(text, args.steps, seed)
            found = {}
            for candidate in candidates:
                outcome = pruned.run(text, candidate, args.evaluations, args.steps)
                found[candidate.label] = figures(outcome)
            record["seeds"].append(
                {"seed": seed, "ratio": pruned.ratio.tolist(), "outcomes": found}
            )
            yield found

    progress = Console(stderr=True)
    pending = track(all_outcomes(), "seeds", total=args.seeds, console=progress, transient=True)
    results = list(pending)
    show(f"byte model, {len(results)} seeds", results)
    constant = [result["constant"]["average"] for result in results]
    print(f"\nconstant ratio: mean loss {', '.join(f'{loss:.4f}' for loss in constant)}")
    if args.json is not None:
        args.json.write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main()
