"""Learning rate, micro-batches, metrics, console: the loop's parts on their own."""

import io
import itertools
import json
import math
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from drpruning.common.console import Reporter, seconds_text
from drpruning.common.errors import BadInput, Interrupted
from drpruning.recipe import Pretrain
from drpruning.runs.lines import Warned
from drpruning.runs.log import MetricsLog
from drpruning.training.optimizer import learning_rate_factor, micro_batches
from drpruning.training.signals import InterruptGuard


def test_learning_rate_warms_up_and_ends_at_a_tenth() -> None:
    settings = Pretrain(steps=1000, warmup=0.1)
    factors = [learning_rate_factor(step, settings) for step in range(1000)]
    assert factors[0] == pytest.approx(0.01)
    assert factors[99] == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(0.1)
    assert factors[549] == pytest.approx(0.55)
    assert all(a <= b for a, b in itertools.pairwise(factors[:100]))
    assert all(a >= b for a, b in itertools.pairwise(factors[99:]))


@given(
    parts=st.sampled_from([1, 2, 4, 8]),
    rows_a_part=st.integers(1, 12),
    micro=st.integers(1, 20),
    ranks=st.sampled_from([1, 2, 4]),
)
def test_micro_batches_cover_every_row_once_and_keep_to_their_part(
    parts: int, rows_a_part: int, micro: int, ranks: int
) -> None:
    batch = parts * rows_a_part
    if batch % ranks or (parts % ranks and ranks % parts):
        return
    pieces = [micro_batches(batch, micro, parts, rank, ranks) for rank in range(ranks)]
    rows = [row for rank in pieces for p in rank for row in range(p.rows.start, p.rows.stop)]
    assert rows == list(range(batch))
    assert len({len(rank) for rank in pieces}) == 1
    for rank in pieces:
        for piece in rank:
            assert 1 <= piece.rows.stop - piece.rows.start <= micro
            assert piece.rows.start // rows_a_part == piece.part
            assert (piece.rows.stop - 1) // rows_a_part == piece.part


def test_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(BadInput, match=r"global_batch: 6 blocks .* multiple of 4"):
        micro_batches(6, 2, ranks=4)
    with pytest.raises(BadInput, match=r"mask_samples: .* multiple or a divisor of 2"):
        micro_batches(6, 2, parts=3, ranks=2)


def test_metrics_are_json_without_nan_and_can_be_cut_back(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", "prune")
    log.write({"step": 1, "loss": math.nan, "ratio": {"a": 0.5, "b": math.inf}})
    size = log.size()
    log.write({"step": 2, "loss": 1.0})
    assert [r["step"] for r in log.read()] == [1, 2]
    log.truncate(size)
    (record,) = log.read()
    assert record["loss"] is None
    assert record["ratio"] == {"a": 0.5, "b": None}
    json.loads((tmp_path / "metrics.jsonl").read_text())


def test_first_signal_is_noted_and_the_second_acts() -> None:
    def work() -> None:
        with InterruptGuard() as guard:
            assert not guard.requested
            signal.raise_signal(signal.SIGINT)
            assert guard.requested
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        work()
    assert signal.getsignal(signal.SIGTERM) is before


def test_without_a_terminal_progress_is_plain_lines() -> None:
    out = io.StringIO()
    reporter = Reporter(console=Console(file=out, force_terminal=False))
    with reporter.task("prune", 10) as task:
        for step in range(1, 11):
            task.update(step, f"loss {step}")
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("prune 1/10  loss 1")
    assert lines[-1].startswith("prune 10/10  loss 10")
    assert len(lines) == 2, "lines between come only every few seconds"
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59, "59s"), (185, "3m05s"), (7800, "2h10m"), (97200, "1d03h")],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_a_phase_that_starts_from_scratch_drops_only_its_own_records(tmp_path: Path) -> None:
    prune, pretrain = (
        MetricsLog(tmp_path / "metrics.jsonl", phase) for phase in ("prune", "pretrain")
    )
    prune.record(Warned(phase="prune", step=9, time=0.0, message="careful"))
    kept = (tmp_path / "metrics.jsonl").read_bytes()
    for step in (0, 1):
        pretrain.record(Warned(phase="pretrain", step=step, time=0.0, message="careful"))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "ste')
    assert len(pretrain.read()) == 3
    pretrain.drop_phase()
    assert (tmp_path / "metrics.jsonl").read_bytes() == kept
