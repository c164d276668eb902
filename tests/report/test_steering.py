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
from drpruning.runs.records import load_run
from drpruning.scheduling import make_policy

MakeRun = Callable[..., Any]
SHARES = {"web": 0.6, "code": 0.2, "rising": 0.08, "jump": 0.07, "gap": 0.05}
STEPS, EVERY = 600, 30


class PolicyRun:
    """A run folder whose metrics are the decisions of a real policy on made-up losses."""

    def __init__(
        self, folder: Path, policy: str, final_params: float = 1e6, **settings: Any
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
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
        assert cell["reference loss"] == f"{last['reference_loss'][name]:.3f}"
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
    assert decision.distance == "0.1 of 0.1 (limit reached)"


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
    except StopIteration:
        return 0


def test_every_forecast_has_its_mark(steered: PolicyRun, steered_page: Page) -> None:
    figure = steered_page.figures()["run1-pretrain-validation-loss"]
    for name in SHARES:
        made = [r for r in steered.evals if name in (r["forecast"] or {})]
        refused = sum(name in r["explanation"]["refused"] for r in made)
        assert marks(figure, f"refused-{name}") == refused
        assert marks(figure, f"forecast-{name}") == len(made) - refused
        assert line_of(figure, f"interval-{name}") is not None


def loss_path(page: Page, name: str) -> str | None:
    figure = page.figures()["run1-pretrain-validation-loss"]
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
    figure = steered_page.figures()["run1-pretrain-steering"]
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
    assert "run1-prune-steering" not in page.figures()
