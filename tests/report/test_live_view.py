"""The view of a run on a terminal: what it says, and that it fits wherever it is shown."""

import io
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from drpruning.common.console import Reporter
from drpruning.report.live_table import bar, sparkline
from drpruning.report.live_view import OwnRunView, render
from drpruning.runs.follow import RunFollower, RunState, SavedCheckpoint
from helpers.fake_run import DOMAINS, FakeRun

THIRTY = tuple(f"language-{index:02d}" for index in range(30))


def pruning(folder: Path, domains: tuple[str, ...] = DOMAINS) -> RunState:
    """A run at step 210 of 400 of pruning, 10 seconds after its last line."""
    run = FakeRun(folder, domains)
    run.recipe()
    run.metrics("prune", total_steps=400, every=20, until=210)
    return replace(RunFollower(folder).read(), is_worked_on=True)


def lines_of(state: RunState, width: int, height: int | None = None, now: float = 1220.0) -> Text:
    return render([state], now, width, height)


def plain(state: RunState, width: int = 80, height: int | None = None, now: float = 1220.0) -> str:
    return lines_of(state, width, height, now).plain


def test_everything_of_pruning_is_shown(tmp_path: Path) -> None:
    state = pruning(tmp_path / "run")
    skip = {"kind": "skip", "phase": "prune", "step": 205, "time": 1205.0, "loss": None}
    run = FakeRun(tmp_path / "run2")
    run.recipe()
    run.metrics("prune", total_steps=400, every=20, until=210)
    run.append(skip | {"gradient_norm": None, "blocks": {}})
    run.append({"kind": "warning", "phase": "prune", "step": 80, "time": 1080.0, "message": "hm"})
    state = replace(RunFollower(run.folder).read(), is_worked_on=True)
    state = replace(state, checkpoint=SavedCheckpoint("prune", 200, 1100.0))
    text = plain(state, 160)
    for words in (
        "run2 · running · drpruning",
        "210/400  52%",
        "210/1,200  17%",
        " left",
        "4,000 tokens/s",
        "1 step skipped",
        "checkpoint prune 200, 2m00s ago",
        "last line 10s ago",
        "warning at step 80: hm",
        "×source",
        "realised",
    ):
        assert words in text
    last = state.record.phases["prune"].evals[-1]
    first = state.record.phases["prune"].evals[0]
    for name in DOMAINS:
        (line,) = [line for line in text.splitlines() if line.startswith(name)]
        assert f"{last.loss[name]:.3f}" in line
        assert f"×{math.exp(last.loss[name] - last.reference_loss[name]):.2f}" in line
        assert f"×{math.exp(last.loss[name] - first.loss[name]):.2f}" in line
        assert f"{100 * last.ratio[name]:.1f}%" in line
        assert f"{100 * last.realised_share[name]:.1f}%" in line
        assert "│" in line, "the reference share stands in the bar"
    target = state.record.phases["prune"].steps[-1].target_sparsity or {}
    assert f"% of {100 * target['hidden']:.1f}%" in text


def test_divergence_from_the_teacher_is_shown(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "run")
    run.recipe()
    run.append(run.start("pretrain", 800))
    point = run.evaluation_point("pretrain", 0, 800, run.share, run.share)
    run.append(point | {"divergence": dict.fromkeys(DOMAINS, 0.4321)})
    run.append(run.step("pretrain", 10, 800) | {"divergence": 0.5678})
    text = plain(RunFollower(run.folder).read(), 160)
    assert "divergence from the teacher 0.568" in text
    assert text.count("0.432") == len(DOMAINS) + 1
    assert " KL " in text


@pytest.mark.parametrize("domains", [DOMAINS, THIRTY, ("only",), ("数据", "nom très long " * 3)])
def test_it_fits_every_width_and_height(domains: tuple[str, ...], tmp_path: Path) -> None:
    state = pruning(tmp_path / "run", domains)
    for width in (24, 40, 60, 80, 100, 132, 160, 250):
        for height in (None, 12, 24, 50):
            lines = plain(state, width, height).split("\n")
            assert max(map(cell_len, lines)) <= width
            assert height is None or len(lines) <= height
            assert height != 24 or any("domain" in line for line in lines)


@pytest.mark.parametrize("width", [60, 80, 160])
def test_columns_stand_below_each_other(width: int, tmp_path: Path) -> None:
    text = plain(pruning(tmp_path / "run", ("web", "数据数据", "a much longer name")), width)
    rows = [line for line in text.splitlines() if re.search(r"×\d", line)]
    assert len(rows) == 4
    edges = {cell_len(re.split(r"×[\d.]+", row)[0]) for row in rows}
    assert len(edges) == 1


def test_narrow_has_loss_reference_and_ratio_and_wide_has_more(tmp_path: Path) -> None:
    state = pruning(tmp_path / "run")
    titles = {}
    for width in (60, 80, 160):
        (line,) = [x for x in plain(state, width).splitlines() if x.startswith("domain")]
        titles[width] = set(line.split()) - {"domain"}
    assert {"loss", "×ref", "ratio", "share"} <= titles[60]
    assert titles[60] < titles[80] <= titles[160]
    assert titles[160] >= {"change", "trend", "×source", "ref", "realised"}


def test_order_and_colours_of_domains_stay(tmp_path: Path) -> None:
    def found(text: Text) -> dict[str, str]:
        styles = {}
        for span in text.spans:
            name = text.plain[span.start : span.end].strip()
            if name in THIRTY:
                styles[name] = str(span.style)
        return styles

    state = pruning(tmp_path / "run", THIRTY)
    everything = found(lines_of(state, 80))
    assert list(everything) == list(THIRTY)
    part = found(lines_of(state, 80, 24))
    assert 5 <= len(part) < 30
    assert part.items() <= everything.items()


def test_where_not_all_domains_fit_the_worst_are_shown_and_the_rest_counted(
    tmp_path: Path,
) -> None:
    state = pruning(tmp_path / "run", THIRTY)
    last = state.record.phases["prune"].evals[-1]
    above = {name: last.loss[name] - last.reference_loss[name] for name in THIRTY}
    worst = sorted(THIRTY, key=lambda name: -above[name])
    text = plain(state, 80, 30)
    shown = re.findall(r"language-\d\d", text)
    assert shown == worst[: len(shown)]
    assert f"and {30 - len(shown)} more" in text
    assert " more" not in plain(state, 80)


def test_a_loss_that_is_not_finite_is_the_worst(tmp_path: Path) -> None:
    state = pruning(tmp_path / "run", THIRTY)
    phase = state.record.phases["prune"]
    lost = {**phase.evals[-1].loss, THIRTY[0]: math.nan, THIRTY[1]: math.inf}
    phase.evals[-1] = replace(phase.evals[-1], loss=lost)
    text = plain(state, 80, 24)
    assert re.findall(r"language-\d\d", text)[:2] == [THIRTY[0], THIRTY[1]]
    assert re.search(r"average\s+\d\.\d+", text)


def test_a_domain_of_share_0_and_an_unknown_reference_have_no_numbers(tmp_path: Path) -> None:
    state = pruning(tmp_path / "run")
    phase = state.record.phases["prune"]
    last = phase.evals[-1]
    trained = {name: share for name, share in last.ratio.items() if name != "wiki"}
    reference = {**last.reference_loss, "web": math.nan}
    phase.evals[-1] = replace(last, ratio=trained, reference_loss=reference)
    lines = {line.split()[0]: line for line in plain(state, 160).splitlines() if line.strip()}
    assert lines["web"].split()[4] == "–"
    assert "–" in lines["wiki"]


def test_before_the_first_line_and_before_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert "waiting · " not in plain(RunFollower(folder).read())
    assert "no run has begun here yet" in plain(RunFollower(folder).read())
    FakeRun(folder).recipe()
    (folder / "sessions.jsonl").write_text('{"time": 1000.0}\n')
    state = replace(RunFollower(folder).read(), is_worked_on=True)
    assert "started 1m30s ago; the data are prepared" in " ".join(plain(state, now=1090).split())


def test_a_run_that_is_resumed_is_not_silent(tmp_path: Path) -> None:
    state = replace(pruning(tmp_path / "run"), started=5000.0)
    text = " ".join(plain(state, now=5300.0).split())
    assert "started 5m00s ago" in text
    assert "no line for" not in text
    assert "no line for" in plain(replace(state, is_worked_on=False, started=990.0), now=5300.0)


def test_a_run_whose_process_is_gone(tmp_path: Path) -> None:
    state = replace(pruning(tmp_path / "run"), is_worked_on=False)
    text = "".join(plain(state, now=1210.0 + 720).split())  # a long path is broken into lines
    assert "stopped" in text
    assert "nolinefor12m00s;itsprocessisgone" in text
    assert f"drprunerun{tmp_path / 'run' / 'recipe.yaml'}" in text
    quiet = plain(replace(state, is_worked_on=True), now=1210.0 + 720)
    assert "no line for 12m00s" in quiet
    assert "gone" not in quiet


def test_a_finished_run_says_how_long_it_took(complete_run: FakeRun) -> None:
    state = RunFollower(complete_run.folder).read()
    state = replace(state, has_result=True, is_worked_on=False)
    text = plain(state, now=9e9)
    assert " · finished · " in text
    assert "took 13m20s" in text
    assert "1,200/1,200  100%" in text
    assert " ago" not in text
    evaluating = plain(replace(state, is_worked_on=True))
    assert "all phases are done; the models are evaluated" in evaluating
    written = plain(replace(state, is_worked_on=True, has_result=False))
    assert "pretrain has ended; its model is written" in written


def test_only_the_latest_warnings_are_shown(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "run")
    run.recipe()
    run.metrics("prune", total_steps=400, every=20, until=100)
    for step in range(5):
        line = {"kind": "warning", "phase": "prune", "step": step, "time": 1000.0}
        run.append(line | {"message": f"number {step} " + "word " * 40})
    state = RunFollower(run.folder).read()
    text = plain(state)
    assert "2 earlier warnings" in text
    assert re.findall(r"number \d", text) == ["number 2", "number 3", "number 4"]
    brief = plain(state, height=40)
    assert len(brief.splitlines()) < len(text.splitlines())
    assert re.findall(r"number \d", brief) == ["number 2", "number 3", "number 4"]


def test_without_colour_and_with_ascii_alone_all_is_readable(tmp_path: Path) -> None:
    state = pruning(tmp_path / "run")
    text = render([state], 1220.0, 160, ascii_only=True).plain
    assert text.isascii()
    assert re.search(r"web .* x\d\.\d\d .*#\|", text) or re.search(r"#+\|", text)
    out = io.StringIO()
    Console(file=out, no_color=True, force_terminal=True, width=160).print(lines_of(state, 160))
    assert not re.search(r"\x1b\[[\d;]*3[0-7]", out.getvalue())


@pytest.mark.parametrize(
    ("share", "mark", "text"),
    [(0.5, math.nan, "████    "), (1.2, 0.25, "██│█████"), (math.nan, 1.0, "       │"),
     (0.0, math.nan, "        "), (3 / 16, math.nan, "█▌      ")],
)  # fmt: skip
def test_bars(share: float, mark: float, text: str) -> None:
    assert bar(share, 8, "red", mark).plain == text


def test_sparklines_go_from_the_lowest_to_the_highest() -> None:
    assert sparkline([1.0, 2.0, 3.0]) == "▁▅█"
    assert sparkline([2.0, 2.0]) == "▄▄"
    assert sparkline([1.0, math.nan, math.inf, 3.0]) == "▁  █"
    assert sparkline([]) == ""


def test_names_and_messages_cannot_control_the_terminal(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "run", ("a\x1b[2Jb", "c\nd", "e\rf"))
    run.recipe()
    run.metrics("prune", total_steps=400, every=20, until=100)
    line = {"kind": "warning", "phase": "prune", "step": 1, "time": 1000.0}
    run.append(line | {"message": "look\x1b]0;title\x07 here"})
    text = plain(RunFollower(run.folder).read())
    assert all(line.isprintable() for line in text.split("\n"))
    assert "c?d" in text


def test_several_targets_are_listed(tmp_path: Path) -> None:
    big, small = pruning(tmp_path / "big"), RunFollower(tmp_path / "small").read()
    small.record.recipe = big.record.recipe
    text = render([big, small], 1220.0, 80).plain
    assert "▸ big" in text
    assert "210/2,400" in text
    assert re.search(r"small +waiting", text)


def terminal(height: int = 40) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=True, width=80, height=height, highlight=False,
        _environ={"TERM": "xterm"},
    )  # fmt: skip
    return console, out


def test_a_terminal_shows_the_view_while_training_and_messages_above_it(tmp_path: Path) -> None:
    pruning(tmp_path / "run")
    console, out = terminal()
    reporter = Reporter(console=console, view=OwnRunView(tmp_path / "run"))
    with reporter.task("prune", 400, 210, view=reporter.view) as task:
        task.update(215)
        task.show_activity("validation: 3 of 6 blocks")
        reporter.line("a line of its own")
    text = Text.from_ansi(out.getvalue()).plain
    assert "215/400" in text
    assert "validation: 3 of 6 blocks" in text
    assert text.index("a line of its own") < text.rindex("215/400")
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")


def test_the_terminal_is_put_right_after_an_error(tmp_path: Path) -> None:
    pruning(tmp_path / "run")
    console, out = terminal()
    reporter = Reporter(console=console, view=OwnRunView(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt), reporter.task("prune", 400, view=reporter.view):
        raise KeyboardInterrupt
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")


def test_training_continues_where_the_view_cannot_be_drawn(tmp_path: Path) -> None:
    pruning(tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as log:
        log.write("broken\n")
    console, out = terminal()
    reporter = Reporter(console=console, view=OwnRunView(tmp_path / "run"))
    with reporter.task("prune", 400, view=reporter.view) as task:
        task.update(215, "loss 3.0")
    text = " ".join(Text.from_ansi(out.getvalue()).plain.split())
    assert "215/400" in text
    assert "the view cannot be drawn" in text


def test_plain_lines_are_printed_on_a_terminal_if_asked_for(tmp_path: Path) -> None:
    pruning(tmp_path / "run")
    console, out = terminal()
    reporter = Reporter(console=console, plain=True, view=OwnRunView(tmp_path / "run"))
    with reporter.task("prune", 400, view=reporter.view) as task:
        task.update(400, "loss 3.0")
    assert out.getvalue() == "prune 400/400  loss 3.0\n"
