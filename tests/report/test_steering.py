"""What the page says of the decisions is what the policy said, and it stays small."""

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parsed_page import Page, line_of, report

from drpruning.common.files import dumps
from drpruning.common.unknown import record_fields
from drpruning.report.decision import (
    LastDecision,
    last_decision,
    skipped_updates,
    steps_text,
)
from drpruning.runs.counterfactuals import loss_at, split_data
from drpruning.runs.records import load_run
from drpruning.scheduling import PAPER_SETTINGS, make_policy

MakeRun = Callable[..., Any]
SHARES = {"web": 0.6, "code": 0.2, "rising": 0.08, "jump": 0.07, "gap": 0.05}
STEPS, EVERY = 600, 30
DRPRUNING = PAPER_SETTINGS | {"forecast_at": "equal", "transfer": 0.1, "min_quality": 0.5}
"""Settings under which every kind of decision comes up."""


class PolicyRun:
    """A run folder whose metrics are the decisions of a real policy on made-up losses."""

    def __init__(
        self, folder: Path, policy: str, final_params: float = 1e6, **settings: Any
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        settings = (DRPRUNING if policy == "drpruning" else {}) | settings
        decide = make_policy(policy, SHARES, STEPS, final_params, **settings)
        noise = random.Random(1)
        self.evals: list[dict[str, Any]] = []
        for step in range(0, STEPS + 1, EVERY):
            losses = losses_at(step / STEPS, noise)
            decision = decide.update(step=step, losses=losses, params=1e6)
            record: dict[str, Any] = {"kind": "eval", "phase": "pretrain", "step": step}
            self.evals.append(record | {"loss": losses} | record_fields(decision))
        self.write()

    def write(self) -> "PolicyRun":
        lines = "".join(dumps(record) + "\n" for record in self.evals)
        (self.folder / "metrics.jsonl").write_text(lines)
        self.evals = [json.loads(line) for line in lines.splitlines()]
        return self

    def decision(self) -> LastDecision | None:
        run = load_run(self.folder)
        return last_decision(run.phases["pretrain"], run.domains)


def losses_at(done: float, noise: random.Random) -> dict[str, float]:
    """Losses after this share of training; `gap` was not measured once, half-way."""
    fallen = 0.5 * (0.03 + done) ** -0.3
    loss = {name: 2 + 0.2 * i + fallen for i, name in enumerate(SHARES)}
    loss["rising"] = 3 + 0.3 * max(0.4 - done, 2 * (done - 0.4))
    loss["jump"] += 0.6 if done > 0.7 else 0.0
    loss = {name: value + noise.gauss(0, 0.003) for name, value in loss.items()}
    return loss | ({"gap": math.nan} if abs(done - 0.5) < 1e-9 else {})


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> PolicyRun:
    return PolicyRun(tmp_path_factory.mktemp("runs") / "steered", "drpruning")


@pytest.fixture(scope="module")
def steered_page(steered: PolicyRun) -> Page:
    return report(steered)


def test_the_last_decision_is_that_of_the_log(steered: PolicyRun, steered_page: Page) -> None:
    heads, *rows = steered_page.cells("run1-pretrain-decision")
    last = steered.evals[-1]
    said = last["explanation"]
    assert [row[0] for row in rows] == list(SHARES)
    for row in rows:
        name, cell = row[0], dict(zip(heads, row, strict=True))
        low, high = said["forecast_interval"][name]
        assert cell["loss"] == f"{last['loss'][name]:.3f}"
        origin = said["reference_origin"][name]
        assert cell["reference loss"] == f"{last['reference_loss'][name]:.3f} {origin}"
        assert float(cell["excess"].replace("−", "-")) == pytest.approx(
            last["loss"][name] - last["reference_loss"][name], abs=6e-4
        )
        assert cell["forecast (90% interval)"] == (
            f"{last['forecast'][name]:.3f} {low:.3f}–{high:.3f}"
        )
        assert float(cell["quality"].split()[-1]) == pytest.approx(
            said["forecast_quality"][name], abs=6e-3
        )
        assert ("not used" in cell["quality"]) == (name in said["refused"])
        assert cell["ratio"].startswith(f"{last['ratio'][name]:.2%} ×")
        assert ("reached" in cell["floor"]) == said["at_floor"][name]
        assert f"{said['floor'][name]:.2%}" in cell["floor"]


def test_the_ratio_lies_in_the_ball_around_the_shares_beside_it(steered: PolicyRun) -> None:
    decision = steered.decision()
    assert decision is not None
    at = {head: index for index, head in enumerate(decision.columns)}
    shares = {
        head: [float(cells[at[head]].text.rstrip("%")) / 100 for cells in decision.rows.values()]
        for head in ("reference share", "ratio")
    }
    pairs = list(zip(shares["reference share"], shares["ratio"], strict=True))
    divergence = sum((q - p) ** 2 / p for p, q in pairs) / 2
    said = steered.evals[-1]["explanation"]
    assert said["reference_ratio_updated"]
    assert divergence == pytest.approx(said["divergence"], abs=1e-3)
    assert decision.distance == f"{said['rho']:.3g} of {said['rho']:.3g} (limit reached)"


def test_a_wide_limit_is_not_reached_and_all_shares_but_one_are_at_their_floor(
    tmp_path: Path,
) -> None:
    run = PolicyRun(tmp_path / "wide", "drpruning", rho=20.0, floor=0.02)
    decision, said = run.decision(), run.evals[-1]["explanation"]
    assert decision is not None
    assert decision.distance == f"{said['divergence']:.3g} of 20"
    floors = [cells[decision.columns.index("floor")] for cells in decision.rows.values()]
    assert [cell.mark for cell in floors].count("reached") == 4


def test_averaged_losses_have_their_own_column(tmp_path: Path) -> None:
    decision = PolicyRun(tmp_path / "averaged", "drpruning", loss_weight=0.3).decision()
    assert decision is not None
    at = {head: index for index, head in enumerate(decision.columns)}
    for cells in decision.rows.values():
        loss, reference, excess = (
            float(cells[at[head]].text.replace("−", "-"))
            for head in ("loss, averaged", "reference loss", "excess")
        )
        assert excess == pytest.approx(loss - reference, abs=2e-3)


@pytest.mark.parametrize(
    ("policy", "settings", "columns"),
    [
        ("sheared", {"reference_loss": dict.fromkeys(SHARES, 2.0)}, ["excess", "ratio"]),
        ("naive_dro", {}, ["reference share", "ratio", "floor"]),
        ("constant", {}, None),
        ("group_dro", {}, None),
    ],
)
def test_every_policy_says_what_it_knows(
    tmp_path: Path, policy: str, settings: dict[str, Any], columns: list[str] | None
) -> None:
    run = PolicyRun(tmp_path / policy, policy, **settings)
    decision = run.decision()
    assert (decision.columns[-len(columns) :] if decision and columns else decision) == columns
    skipped = report(run).cells("run1-pretrain-skipped-updates")
    assert skipped[1:] == [["Ratio not updated", "its loss is nan", f"gap at step {STEPS // 2}"]]


def test_where_reference_losses_came_from_covers_the_log(
    steered: PolicyRun, steered_page: Page
) -> None:
    rows = dict(steered_page.cells("run1-pretrain-reference-origins")[1:])
    share = f"{1 / len(SHARES):.2%}"
    words = {f"forecast at a share of {share}": "forecast", "smallest loss so far": "smallest loss"}
    assert set(rows) <= set(words)
    told = {
        (name, step, words[origin])
        for origin, where in rows.items()
        for part in where.split("; ")
        for name in (SHARES if part.startswith("all 5") else part.split(" at step")[0].split(", "))
        for first, last in re.findall(r"(\d+)(?:–(\d+))?", part.split(" at step")[1])
        for step in range(int(first), int(last or first) + 1, EVERY)
    }
    assert told == {
        (name, record["step"], origin)
        for record in steered.evals
        for name, origin in record["explanation"]["reference_origin"].items()
    }


@pytest.mark.parametrize("reference", ["source", dict.fromkeys(SHARES, 2.0)], ids=str)
def test_reference_losses_that_stay_are_named_so(reference: Any, tmp_path: Path) -> None:
    run = PolicyRun(tmp_path / "run", "drpruning", reference_loss=reference, forecast="never")
    words = {"source": "loss of the source model"}.get(str(reference), "given")
    page = report(run)
    steps = f"all 5 domains at steps 0–{STEPS}"
    assert page.cells("run1-pretrain-reference-origins")[1:] == [[words, steps]]
    assert "run1-pretrain-forecast-curves" not in page.figures()
    assert "run1-pretrain-forecast-errors" not in page.ids
    assert "geometric mean" not in page.text


@pytest.mark.parametrize("origin", ["source", "given"])
def test_reference_losses_and_forecasts_that_both_count_are_both_shown(
    origin: str, tmp_path: Path
) -> None:
    reference = "source" if origin == "source" else dict.fromkeys(SHARES, 1.5)
    run = PolicyRun(
        tmp_path / "run", "drpruning", forecast="combine", reference_loss=reference, min_quality=0.0
    )
    page = report(ended(run))
    words = {"source": "loss of the source model"}.get(origin, origin)
    first = next(record["step"] for record in run.evals if record["forecast"])
    assert page.cells("run1-pretrain-reference-origins")[1:] == [
        [words, f"all 5 domains at steps 0–{first - EVERY}"],
        [f"{words}, and forecast at a share of 20.00%", f"all 5 domains at steps {first}–{STEPS}"],
    ]
    heads, *rows = page.cells("run1-pretrain-decision")
    last = run.evals[-1]
    for name, *cells in rows:
        shown = dict(zip(heads[1:], cells, strict=True))
        loss, reference_loss, forecast = (
            float(shown[head].split()[0])
            for head in ("loss", "reference loss", "forecast (90% interval)")
        )
        assert shown["reference loss"].endswith(f" {origin}")
        assert reference_loss == pytest.approx(last["reference_loss"][name], abs=6e-4)
        behind, reachable = max(loss - reference_loss, 0), max(loss - forecast, 0)
        excess = float(shown["excess"].replace("−", "-"))
        assert 0 <= excess <= (behind * reachable) ** 0.5 + 2e-3
    for figure in ("perplexity", "excess"):
        assert "geometric mean" in "".join(page.figures()[f"run1-{figure}"].itertext())
    curves = page.figures()["run1-pretrain-forecast-curves"]
    for line in ("loss", "trained", "counterfactual", "reference", "interval"):
        assert line_of(curves, f"{line}-web") is not None
    assert [row[0] for row in page.cells("run1-pretrain-forecast-errors")[1:-2]] == list(SHARES)


def test_curves_of_the_law_are_those_of_the_log(steered: PolicyRun, steered_page: Page) -> None:
    figure = steered_page.figures()["run1-pretrain-forecast-curves"]
    laws = steered.evals[-1]["explanation"]["forecast_law"]
    assert laws
    for name in laws:
        for line in ("loss", "trained", "counterfactual", "reference", "interval"):
            assert line_of(figure, f"{line}-{name}") is not None
        assert f"{name} ({100 / len(SHARES):.3g}%)" in "".join(figure.itertext())


def test_a_law_is_read_off_at_the_data_that_a_share_would_give() -> None:
    law = {"A": 2.0, "beta": 0.5, "E": 1.0, "offset": 3.0, "transfer": 0.25}
    assert loss_at(law, 5.0, 4.0) == pytest.approx(1 + 2 * (5 + 0.25 * 4 + 3) ** -0.5)
    assert loss_at(law | {"offset": 0.0}, 0.0, 0.0) != loss_at(law, 0.0, 0.0)
    for broken in (law | {"A": math.nan}, law | {"beta": -1e9}, {}, law | {"offset": -9.0}):
        assert math.isnan(loss_at(broken, 5.0, 4.0))
    assert split_data({"a": 1.0, "b": 2.0, "c": 4.0}, "b") == (2.0, 5.0)
    assert all(map(math.isnan, split_data({"a": 1.0}, "b")))


def ended(run: PolicyRun, step: int = STEPS, stopped: str | None = None) -> PolicyRun:
    """The same run with the record of its end."""
    times = {"time": 0.0, "total_seconds": 1.0, "tokens": 1, "stopped": stopped}
    end = {"kind": "end", "phase": "pretrain", "step": step} | times
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(end) + "\n")
    return run


@pytest.mark.parametrize("at", ["equal", "reference", "present"])
def test_forecasts_are_compared_with_the_losses_at_the_end(at: str, tmp_path: Path) -> None:
    run = PolicyRun(tmp_path / "run", "drpruning", forecast_at=at)
    assert "run1-pretrain-forecast-errors" not in report(run).ids
    page = report(ended(run))
    heads, *rows, sizes, hits = page.cells("run1-pretrain-forecast-errors")
    assert heads == ["Domain", *(f"at {p}% step {STEPS * p // 100}" for p in (20, 40, 60, 80))]
    last = run.evals[-1]
    for column in range(1, 5):
        made = next(r for r in run.evals if r["step"] == STEPS * column // 5)
        law = made["explanation"].get("forecast_law", {})
        used = []
        for name, *cells in rows:
            cell = cells[column - 1]
            predicted = (made["forecast"] or {}).get(name)
            if at != "present" and name in law:
                own = last["data"][name]
                predicted = loss_at(law[name], own, STEPS - own)
            if predicted is None:
                assert cell == "–"
                continue
            error = predicted - last["loss"][name]
            assert ("not used" in cell) == (name in made["explanation"]["refused"])
            assert float(cell.split()[-1].replace("−", "-")) == pytest.approx(error, abs=6e-4)
            used += [] if "not used" in cell else [abs(error)]
        assert float(sizes[column]) == pytest.approx(sum(used) / len(used), abs=6e-4)
        intervals = made["explanation"]["forecast_interval"]
        checked = [name for name, *cells in rows if cells[column - 1] != "–" and name in intervals]
        inside = [n for n in checked if intervals[n][0] <= last["loss"][n] <= intervals[n][1]]
        assert hits[column] == f"{len(inside)} of {len(checked)}"
    figure = page.figures().get("run1-pretrain-forecast-curves")
    assert (figure is None) == (at == "present")
    # of a complete phase the curves begin half-way, so that they lie beside what came true
    assert figure is None or f"From step {STEPS // 2:,} on" in "".join(figure.itertext())


def test_a_forecast_over_steps_is_not_judged_where_training_stopped_early(tmp_path: Path) -> None:
    for at in ("present", "equal"):
        run = PolicyRun(tmp_path / at, "drpruning", forecast_at=at)
        run.evals = run.evals[: len(run.evals) // 2]
        start = {"kind": "start", "phase": "pretrain", "step": 0, "time": 0.0}
        sizes = {"total_steps": STEPS, "global_batch": 1, "sequence_length": 1, "parameters": 1.0}
        run.evals = [start | sizes | {"versions": {}, "commit": None}, *run.evals]
        page = report(ended(run.write(), run.evals[-1]["step"], "exhausted"))
        assert ("run1-pretrain-forecast-errors" in page.ids) == (at == "equal")


def test_a_radius_below_rho_is_drawn_counted_and_named(tmp_path: Path) -> None:
    run = PolicyRun(tmp_path / "run", "drpruning", rho=0.5, tau=2.0, floor=0.01)
    said = run.evals[-1]["explanation"]
    assert said["radius"] < said["rho"]
    decision = run.decision()
    assert decision is not None
    assert decision.distance == (
        f"{said['divergence']:.3g} of {said['radius']:.3g} (limit reached, rho 0.5)"
    )
    page = report(run)
    counts = dict(page.cells("run1-pretrain-counts")[1:])
    below = [r for r in run.evals if r["explanation"]["radius"] < r["explanation"]["rho"]]
    assert counts["limit below rho"] == str(len(below))
    churn = [r["explanation"]["churn"] for r in run.evals]
    assert counts["mean churn of the ratio"] == f"{sum(churn) / len(churn):.3f}"
    assert line_of(page.figures()["run1-steering"], "rho") is not None


def test_churn_of_an_older_log_follows_from_its_ratios(tmp_path: Path) -> None:
    run = PolicyRun(tmp_path / "run", "cvar")
    wanted = report(run).cells("run1-pretrain-counts")[1:]
    moved = [r["explanation"].pop("churn") for r in run.evals]
    assert sum(moved) > 0
    (row,) = report(run.write()).cells("run1-pretrain-counts")[1:]
    # how far the first evaluation moved the ratio cannot be known then
    assert row == ["mean churn of the ratio", f"{sum(moved[1:]) / len(moved[1:]):.3f}"]
    assert [row[0]] == [first for first, _ in wanted]


def test_skipped_updates_cover_the_log(steered: PolicyRun) -> None:
    run = load_run(steered.folder)
    lines = skipped_updates(run.phases["pretrain"], run.domains)
    logged = {
        (what, name, record["step"])
        for record in steered.evals
        for what, field in (
            ("Ratio not updated", "unusable"),
            ("No forecast", "no_forecast"),
            ("Forecast not used", "refused"),
        )
        for name in record["explanation"].get(field, {})
    }
    told = set()
    for line in lines:
        for part in line.where.split("; "):
            names, _, at = part.partition(" at step")
            for first, last in re.findall(r"(\d+)(?:–(\d+))?", at):
                steps = range(int(first), int(last or first) + 1, EVERY)
                found = list(SHARES) if names == "all 5 domains" else names.split(", ")
                told |= {(line.what, name, step) for name in found for step in steps}
    assert told == logged
    assert ("Forecast not used", "rising", STEPS) in told
    assert ("Ratio not updated", "gap", STEPS // 2) in told


def test_decisions_are_counted_as_the_log_has_them(steered: PolicyRun, steered_page: Page) -> None:
    said = [record["explanation"] for record in steered.evals]
    counts = dict(steered_page.cells("run1-pretrain-counts")[1:])
    assert counts["evaluations"] == str(len(said))
    updated = [e for e in said if e["ratio_updated"]]
    assert counts["ratio updated"] == str(len(updated))
    limits = [e["divergence"] >= e["rho"] * (1 - 1e-6) for e in updated]
    assert sum(limits) > 0
    assert counts["limit reached"] == str(sum(limits))
    moved = [r["step"] for r in steered.evals if r["explanation"]["reference_ratio_updated"]]
    assert counts["reference ratio moved"] == f"{len(moved)}, from step {moved[0]}"
    floors = {name: sum(e["at_floor"][name] for e in said) for name in SHARES}
    shown = dict(part.rsplit(" ", 1) for part in counts["share at its floor"].split(", "))
    assert shown == {name: str(times) for name, times in floors.items() if times}


def test_first_step_of_a_fit_is_that_of_the_log(steered: PolicyRun) -> None:
    decision, since = steered.decision(), steered.evals[-1]["explanation"]["forecast_since"]
    assert decision is not None
    assert since
    at = decision.columns.index("fitted from step")
    shown = {name: cells[at].text for name, cells in decision.rows.items()}
    assert {name: text for name, text in shown.items() if text != "–"} == {
        name: f"{step:,.0f}" for name, step in since.items()
    }


@pytest.mark.parametrize(
    ("indices", "text"),
    [
        ([3], "step 30"),
        ([0, 1, 2, 5], "steps 0–20, 50"),
        ([0, 2, 4, 6, 8], "5 evaluations from step 0 to 80"),
    ],
)
def test_steps_are_written_short(indices: list[int], text: str) -> None:
    assert steps_text(indices, range(0, 100, 10)) == text


def test_many_domains_and_evaluations_stay_small(fake_run: MakeRun) -> None:
    domains = [f"domain-{index}" for index in range(20)]
    run, dice = fake_run(domains=domains), random.Random(2)
    point = run.evaluation_point("prune", 100, 100, run.share, run.share)
    for step in range(120):
        refused = {
            name: dice.choice(["its losses rise", f"quality {dice.random():.2f} is below 0.5"])
            for name in dice.sample(domains, 8)
        }
        explanation = point["explanation"] | {"refused": refused}
        run.append(point | {"step": step, "explanation": explanation})
    record = load_run(run.folder)
    lines = skipped_updates(record.phases["prune"], record.domains)
    assert [line.what for line in lines] == ["Forecast not used"] * 2
    assert sum(len(line.why) + len(line.where) for line in lines) < 3000


def marks(figure: Any, name: str) -> int:
    try:
        return sum(element.tag.endswith("use") for element in line_of(figure, name).iter())
    except ValueError:
        return 0


def test_every_forecast_has_its_mark(steered: PolicyRun, steered_page: Page) -> None:
    figure = steered_page.figures()["run1-forecasts"]
    for name in SHARES:
        made = [r for r in steered.evals if name in (r["forecast"] or {})]
        refused = sum(name in r["explanation"]["refused"] for r in made)
        assert marks(figure, f"refused-pretrain-{name}") == refused
        assert marks(figure, f"forecast-pretrain-{name}") == len(made) - refused
        assert line_of(figure, f"interval-pretrain-{name}") is not None


def loss_path(page: Page, name: str) -> str | None:
    figure = page.figures()["run1-forecasts"]
    path = next(e for e in line_of(figure, f"loss-{name}").iter() if e.tag.endswith("path"))
    return path.get("d")


def test_absurd_intervals_leave_the_scale_alone(tmp_path: Path, steered_page: Page) -> None:
    run = PolicyRun(tmp_path / "absurd", "drpruning")
    for record in run.evals:
        intervals = record["explanation"].get("forecast_interval", {})
        for name in intervals:
            intervals[name] = [-1e300, 1e300] if name == "web" else [None, 3.0]
    page = report(run.write())
    for name in SHARES:
        assert loss_path(page, name) == loss_path(steered_page, name)


def test_skipped_updates_are_marked_in_the_figure(steered: PolicyRun, steered_page: Page) -> None:
    figure = steered_page.figures()["run1-steering"]
    kept = [r for r in steered.evals if not r["explanation"]["ratio_updated"]]
    assert kept
    assert marks(figure, "not-updated") == len(kept)
    assert line_of(figure, "floor") is not None
    assert line_of(figure, "forecast") is not None


def test_a_page_of_decisions_is_well_formed(steered_page: Page) -> None:
    assert len(steered_page.ids) == len(set(steered_page.ids))
    assert {"run1-pretrain-decision", "run1-pretrain-skipped-updates"} <= set(steered_page.ids)
    for figure in steered_page.figures().values():
        assert not re.search(r"#[0-9a-f]{6}\b", "".join(e.get("style", "") for e in figure.iter()))


def test_a_log_without_explanations(fake_run: MakeRun) -> None:
    run = fake_run()
    run.recipe()
    point = run.evaluation_point("prune", 100, 100, run.share, run.share)
    del point["explanation"]
    run.append(point)
    page = report(run)
    assert page.cells("run1-prune-decision")[0] == [
        "Domain",
        "loss",
        "forecast",
        "reference loss",
        "excess",
        "ratio",
    ]
    assert "run1-prune-skipped-updates" not in page.ids
    assert "run1-steering" not in page.figures()
