"""What planning and reading batches costs, against `datasets.interleave_datasets`.

Both give batches of int64 token ids from memory-mapped files of the same blocks in random order
under the same ratio. They take turns in one run, so that a busy machine slows both; `datasets` is
tried as it is on disk and as a stream with a shuffle buffer, and the faster of the two counts. Then
the planning of a segment from a corpus of a billion blocks, which exists only as a number. Prints
one JSON object.

    python benchmarks/data_speed.py
"""

import argparse
import json
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from drpruning.data import DomainBlocks, DomainCounts, Mixture, PreparedData, TokenBlocks

SHARES = {
    "cc": 0.67,
    "c4": 0.15,
    "github": 0.045,
    "book": 0.045,
    "wiki": 0.045,
    "arxiv": 0.025,
    "stackexchange": 0.02,
}
SEED = 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=60_000, help="in all domains")
    parser.add_argument("--sequence-length", type=int, default=256, help="tokens")
    parser.add_argument("--global-batch", type=int, default=32, help="blocks")
    parser.add_argument("--steps", type=int, default=500, help="batches a round")
    parser.add_argument("--evaluate-every", type=int, default=50, help="batches a segment")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", type=int, default=10**9, help="blocks of the large corpus")
    return parser.parse_args()


def write(args: argparse.Namespace, folder: Path) -> PreparedData:
    """The same random blocks as raw files and as data sets on disk."""
    rng = np.random.default_rng(SEED)
    length = args.sequence_length
    row = datasets.Features(
        {"input_ids": datasets.Sequence(datasets.Value("uint16"), length=length)}
    )
    found = {}
    for name, share in SHARES.items():
        tokens = rng.integers(0, 4096, (round(share * args.blocks), length), dtype=np.uint16)
        file = folder / f"{name}.bin"
        file.write_bytes(tokens.tobytes())
        blocks = TokenBlocks(file, length, "uint16")
        counts = DomainCounts(**dict.fromkeys(DomainCounts.__dataclass_fields__, 0))
        found[name] = DomainBlocks(name=name, train=blocks, validation=blocks, counts=counts)
        table = datasets.Dataset.from_dict({"input_ids": tokens}, features=row)
        table.save_to_disk(folder / name)
    return PreparedData(
        folder=folder, fingerprint="", tokenizer_digest="", sequence_length=length, domains=found
    )


def ours(args: argparse.Namespace, data: PreparedData) -> Iterator[np.ndarray]:
    sizes = {name: len(domain.train) for name, domain in data.domains.items()}
    mixture = Mixture(sizes, args.global_batch, SEED)
    while True:
        segment = mixture.plan_segment(SHARES, args.evaluate_every)
        for index in range(segment.steps):
            yield data.train_blocks(segment.domains, *segment.batch(index))
        mixture.advance(segment)


def interleaved(args: argparse.Namespace, folder: Path, *, stream: bool) -> Iterator[np.ndarray]:
    tables = [datasets.load_from_disk(str(folder / name)) for name in SHARES]
    if stream:
        tables = [t.to_iterable_dataset().shuffle(seed=SEED, buffer_size=1000) for t in tables]
    else:
        tables = [t.shuffle(seed=SEED) for t in tables]
    mixed = datasets.interleave_datasets(
        tables, probabilities=list(SHARES.values()), seed=SEED, stopping_strategy="all_exhausted"
    )
    for batch in mixed.with_format("numpy").iter(batch_size=args.global_batch):
        yield np.asarray(batch["input_ids"]).astype(np.int64)


def tokens_per_second(args: argparse.Namespace, batches: Iterator[np.ndarray]) -> float:
    start = time.perf_counter()
    tokens = sum(next(batches).size for _ in range(args.steps))
    assert tokens == args.steps * args.global_batch * args.sequence_length
    return tokens / (time.perf_counter() - start)


def planning(blocks: int, global_batch: int, steps: int) -> dict[str, Any]:
    """Time and memory of planning one segment of a corpus of this many blocks."""
    sizes = {name: round(share * blocks) for name, share in SHARES.items()}

    def plan() -> None:
        mixture = Mixture(sizes, global_batch, SEED)
        mixture.advance(mixture.plan_segment(SHARES, steps))

    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        plan()
        seconds.append(time.perf_counter() - start)
    tracemalloc.start()
    plan()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "corpus_blocks": blocks,
        "planned_blocks": steps * global_batch,
        "milliseconds": round(1000 * min(seconds), 1),
        "peak_mib": round(peak / 2**20, 2),
    }


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    datasets.disable_progress_bars()
    data = write(args, folder)
    makers: dict[str, Callable[[], Iterator[np.ndarray]]] = {
        "ours": lambda: ours(args, data),
        "on_disk": lambda: interleaved(args, folder, stream=False),
        "stream": lambda: interleaved(args, folder, stream=True),
    }
    speeds: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(args.rounds):
        for name, make in makers.items():
            speeds[name].append(tokens_per_second(args, make()))
    best = {name: max(values) for name, values in speeds.items()}
    ratios = [
        mine / max(disk, stream)
        for mine, disk, stream in zip(*(speeds[n] for n in makers), strict=True)
    ]
    return {
        "tokens_per_second": {name: round(value) for name, value in best.items()},
        "against_the_faster": round(sorted(ratios)[len(ratios) // 2], 1),
        "milliseconds_a_batch": round(
            1000 * args.global_batch * args.sequence_length / best["ours"], 3
        ),
        "planning": [planning(n, 256, 400) for n in (10**5, args.large)],
        "settings": vars(args),
    }


if __name__ == "__main__":
    arguments = parse()
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(measure(arguments, Path(temporary))))
