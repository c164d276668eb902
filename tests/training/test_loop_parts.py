"""Learning rate, micro-batches, metrics, console: the loop's parts on their own."""

import io
import itertools
import json
import logging
import math
import os
import pty
import re
import signal
import time
from pathlib import Path

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from drpruning.cli.app import check_launch, end_by_message, interrupt_on_signals
from drpruning.common.console import Reporter, seconds_text, warnings_shown
from drpruning.common.errors import BadInput, Interrupted
from drpruning.recipe import Pretrain
from drpruning.runs.lines import Warned
from drpruning.runs.log import MetricsLog
from drpruning.training.distributed import check_device
from drpruning.training.messages import (
    above_teacher,
    evaluation_text,
    exhausted_text,
    first_loss_text,
)
from drpruning.training.optimizer import learning_rate_factor, micro_batches
from drpruning.training.signals import SIGNALS, InterruptGuard
from helpers.small_runs import drprune
from helpers.warned import warned

LAUNCHED = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_that_were_ignored_at_the_start_stay_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    interrupt_on_signals()
    with InterruptGuard() as guard:
        signal.raise_signal(number)
    assert not guard.requested
    assert signal.getsignal(number) is signal.SIG_IGN
    others = [name for name in SIGNALS if name != number]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(others[0])
    assert signal.getsignal(number) is signal.SIG_IGN
    assert all(signal.getsignal(name) is signal.SIG_DFL for name in others)


def test_a_terminal_that_closes_asks_to_stop_and_takes_no_more_output() -> None:
    def hang_up() -> None:
        other_end, terminal = pty.openpty()
        kept = os.dup(1)
        os.dup2(terminal, 1)
        os.close(other_end)
        try:
            with pytest.raises(OSError, match="Input/output error"):
                os.write(1, b"x")
            with InterruptGuard() as guard:
                signal.raise_signal(signal.SIGHUP)
                assert guard.requested
                os.write(1, b"x")
        finally:
            os.dup2(kept, 1)
            os.close(kept)
            os.close(terminal)

    with pytest.raises(Interrupted):
        hang_up()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "banana"}, "RANK=banana: not a whole number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1: not a whole number"),
        ({"RANK": "0"}, "RANK=0 is set, but not LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"LOCAL_RANK": "7"}, "LOCAL_RANK=7 is set, but not RANK, WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set, but not RANK"),
        (LAUNCHED | {"MASTER_PORT": "ssh"}, "MASTER_PORT=ssh: not a whole number"),
        (LAUNCHED | {"MASTER_PORT": "99999"}, "MASTER_PORT=99999: ports end at 65535"),
        (LAUNCHED | {"MASTER_ADDR": "no host"}, "MASTER_ADDR=no host: no such host"),
        (LAUNCHED | {"RANK": "2"}, "RANK=2: with WORLD_SIZE=2 ranks"),
        (LAUNCHED | {"LOCAL_RANK": "7"}, "LOCAL_RANK=7: with WORLD_SIZE=2 ranks"),
    ],
)
def test_environment_that_no_launcher_sets_is_refused(
    environment: dict[str, str], words: str
) -> None:
    with pytest.raises(BadInput, match=rf"^{words}.*; start it by torchrun .* or unset "):
        check_launch(environment)


def test_environment_of_a_launcher_or_none_is_accepted() -> None:
    for environment in ({}, {"MASTER_ADDR": "head"}, LAUNCHED, LAUNCHED | {"RANK": "1"}):
        check_launch(environment)


def test_rank_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "7")
    with pytest.raises(BadInput, match="LOCAL_RANK=7: this machine has 4 GPUs; start at most 4"):
        check_device()
    monkeypatch.setenv("LOCAL_RANK", "3")
    check_device()


def test_a_command_of_a_wrong_rank_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "banana")
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert "RANK=banana: not a whole number" in drprune("report", "nowhere", status=2)


@pytest.mark.parametrize(("rank", "waits"), [(None, 0), ("0", 0), ("1", 1)])
def test_ranks_speak_after_the_first_and_of_an_interruption_it_alone_speaks(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rank: str | None,
    waits: int,
) -> None:
    def say(error: Exception) -> str:
        with pytest.raises(typer.Exit):
            end_by_message(error)
        return capsys.readouterr().err

    waited: list[float] = []
    for name, value in (LAUNCHED | {"RANK": rank or ""}).items():
        if rank is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(time, "sleep", waited.append)
    assert say(BadInput("this is wrong")) == "drprune: this is wrong\n"
    assert len(waited) == waits
    assert ("interrupted; saved" in say(Interrupted())) == (waits == 0)


def test_warnings_of_a_library_can_be_redirected(caplog: pytest.LogCaptureFixture) -> None:
    Reporter().warn("look here")
    Reporter(silent=True).warn("not here")
    assert warned(caplog) == ["look here"]


def test_a_command_shows_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("drpruning.training.checkpoint")
    with warnings_shown():
        logger.warning("look at %s", "this")
        logger.info("not at this")
    with warnings_shown(silent=True):
        logger.warning("nor at this")
    assert capsys.readouterr().out == "warning: look at this\n"
    assert logging.getLogger("drpruning").handlers == []


def test_warnings_stand_above_a_live_display(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(force_terminal=True, width=60, _environ={"TERM": "xterm"})
    with warnings_shown(), Reporter(console=console).task("prune", 10):
        for text in ("look at this", "and at that"):
            logging.getLogger("drpruning.training").warning(text)
    erased = r"\x1b\[2K(\x1b\[1A\x1b\[2K)+(\x1b\[33m)?warning: and at that"
    assert re.search(erased, capsys.readouterr().out)


def on_a_terminal(width: int) -> tuple[Reporter, io.StringIO]:
    screen = io.StringIO()
    return Reporter(
        console=Console(
            file=screen,
            force_terminal=True,
            width=width,
            highlight=False,
            _environ={"TERM": "xterm"},
        )
    ), screen


def test_a_terminal_shows_at_once_what_is_waited_for() -> None:
    reporter, screen = on_a_terminal(width=80)
    with reporter.status("loading PyTorch"):
        assert "loading PyTorch" in screen.getvalue()
    plain = io.StringIO()
    with Reporter(console=Console(file=plain)).status("loading PyTorch"):
        assert plain.getvalue() == ""


def test_lines_on_a_terminal_are_broken_between_words_only() -> None:
    reporter, screen = on_a_terminal(width=20)
    reporter.line("the model lies in /a/very/long/path/that/stays/in/one/piece now")
    lines = [line.rstrip() for line in screen.getvalue().splitlines()]
    assert lines == ["the model lies in", "/a/very/long/path/that/stays/in/one/piece", "now"]


def test_what_was_done_during_an_evaluation_does_not_stay_on_the_screen() -> None:
    reporter, screen = on_a_terminal(width=80)
    with reporter.task("prune", 10) as task:
        task.update(1, "loss 3.0")
        task.show_activity("validation: 3 of 6 blocks")
        assert task._shown.plain == "validation: 3 of 6 blocks"
        task.show_activity("")
        task.update(2)
        assert task._shown.plain == "loss 3.0"
    assert "validation" not in screen.getvalue().rsplit("2/10", 1)[-1]


def test_distance_to_the_teacher_counts_the_domains_that_both_have() -> None:
    losses = {"a": 3.0, "b": 2.0, "c": math.nan}
    assert above_teacher(losses, {"a": 2.5, "b": 1.9, "d": 1.0}) == pytest.approx(0.3)
    assert above_teacher(losses, {"a": 2.5, "c": 1.9}) is None
    assert above_teacher(losses, {}) is None


def test_evaluations_read_as_sentences() -> None:
    losses, ratio = {"code": 3.6, "docs": 4.75, "web": math.nan}, {"code": 0.55, "docs": 0.45}
    assert evaluation_text(losses, ratio) == (
        "validation loss 4.175 on average, 4.750 on docs (highest) | until the next evaluation: "
        "data ratio code 55.0% docs 45.0%"
    )
    assert "4.175 on average (0.120 above the teacher's), 4.750" in evaluation_text(
        losses, ratio, 0.12
    )
    assert "(0.010 below the teacher's)" in evaluation_text(losses, ratio, -0.01)
    first, second = exhausted_text({"a": "stop", "b": "repeat", "c": "repeat"})
    assert first == "the data of a are exhausted: the phase ends (on_exhausted: stop)"
    assert second.startswith("the data of b, c are exhausted: they are read again in another order")


@pytest.mark.parametrize(
    ("losses", "warned_of"),
    [
        ({"a": 2.0, "b": 9.3}, False),
        ({"a": 8.32, "b": 8.35}, False),  # never trained, ln(4096) = 8.32
        ({"a": 9.2}, False),  # never trained, hidden size 4,096
        ({"a": 9.4}, True),
        ({"a": 11.2, "b": 11.4}, True),
        ({"a": 20.0, "b": math.nan}, True),
        ({"a": 2.0, "b": math.inf}, False),
        ({"a": math.nan}, False),
    ],
)
def test_a_first_loss_far_above_that_of_an_untrained_model(
    losses: dict[str, float], *, warned_of: bool
) -> None:
    lines = first_loss_text(losses, 4096)
    assert len(lines) == warned_of
    assert all("about ln(vocabulary) = 8.32: the tokenizer is probably" in line for line in lines)


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
