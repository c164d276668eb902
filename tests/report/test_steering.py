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
from drpruning.report.decision import (
    LastDecision,
    last_decision,
    skipped_updates,
    skipped_updates_note,
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
            fields = ("reference_loss", "forecast", "reference_ratio", "ratio", "excess")
            record: dict[str, Any] = {"kind": "eval", "phase": "pretrain", "step": step}
            record |= {"loss": losses, "explanation": decision.explanation}
            self.evals.append(record | {name: getattr(decision, name) for name in fields})
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
        assert ("binds" in cell["floor"]) == said["at_floor"][name]
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
    assert "The ratio uses 0.1 of the 0.1 that the ball allows: the ball binds." in decision.remarks


def test_a_wide_ball_leaves_all_free_mass_on_one(tmp_path: Path) -> None:
    run = PolicyRun(tmp_path / "wide", "drpruning", rho=20.0, floor=0.02)
    decision, said = run.decision(), run.evals[-1]["explanation"]
    (free,) = [name for name, binds in said["at_floor"].items() if not binds]
    assert decision is not None
    assert decision.remarks[0].endswith(f"all mass that the floors leave free is on {free}.")
    assert decision.remarks[1] == "The floor binds for 4 of 5 domains."


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
    held = report(run).cells("run1-pretrain-held-back")
    assert held[1:] == [["Ratio not updated", "its loss is nan", f"gap at step {STEPS // 2}"]]


def test_held_back_covers_the_log(steered: PolicyRun) -> None:
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


def test_a_refused_forecast_leaves_what_the_log_says_it_left(
    steered: PolicyRun, tmp_path: Path
) -> None:
    """The smallest loss seen is gone by only where a model of final size was evaluated."""
    larger = PolicyRun(tmp_path / "larger", "drpruning", final_params=5e5)
    for run, makes_do in ((steered, True), (larger, False)):
        known = [
            (record["reference_loss"] or {}).get(name) is not None
            for record in run.evals
            for name in record["explanation"].get("refused", {})
        ]
        assert any(known) == makes_do
        text = skipped_updates_note(load_run(run.folder).phases["pretrain"])
        assert ("goes by the smallest loss seen" in text) == makes_do
        assert ("leaves a domain without a reference loss" in text) == (not all(known))
        assert text in " ".join(report(run).text.split())


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
    text = "".join(figure.itertext())
    for name in SHARES:
        made = [r for r in steered.evals if name in (r["forecast"] or {})]
        refused = sum(name in r["explanation"]["refused"] for r in made)
        assert marks(figure, f"refused-{name}") == refused
        assert marks(figure, f"forecast-{name}") == len(made) - refused
        assert line_of(figure, f"interval-{name}") is not None
    made = sum(len(r["forecast"] or {}) for r in steered.evals)
    refused = sum(len(r["explanation"].get("refused", {})) for r in steered.evals)
    assert refused
    assert f"{refused} of {made} forecasts were not used" in text


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


def test_the_ball_over_steps(steered: PolicyRun, steered_page: Page) -> None:
    figure = steered_page.figures()["run1-pretrain-steering"]
    kept = [r for r in steered.evals if not r["explanation"]["ratio_updated"]]
    assert marks(figure, "kept") == len(kept)
    assert line_of(figure, "floor") is not None
    assert line_of(figure, "forecast") is not None
    updates = len(steered.evals) - len(kept)
    assert f"of {updates} updates" in "".join(figure.itertext())


def test_a_page_of_decisions_is_well_formed(steered_page: Page) -> None:
    assert len(steered_page.ids) == len(set(steered_page.ids))
    assert {"run1-pretrain-decision", "run1-pretrain-held-back"} <= set(steered_page.ids)
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
    assert "run1-prune-held-back" not in page.ids
    assert "run1-prune-steering" not in page.figures()
