"""`drprune replay`: a run's own policy gives its ratio again, another one what it would decide."""

import io
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

import drpruning.cli.replay_tables
from drpruning.cli.commands import app
from drpruning.cli.replay_tables import describe, print_replay, sparkline, write_replay
from drpruning.common.console import Reporter
from drpruning.common.errors import BadInput
from drpruning.common.unknown import record_fields
from drpruning.recipe import Scheduling
from drpruning.runs.counterfactuals import trained_shares
from drpruning.runs.lines import EvalPoint
from drpruning.runs.replay import replay_run
from drpruning.runs.replay_curves import CHECKED
from drpruning.runs.typed_json import read_record
from drpruning.scheduling import POLICY_NAMES, make_policy
from helpers.logged_run import FINAL, REFERENCE, SHARES, LoggedRun

runner = CliRunner()
ROOT = Path(__file__).parents[2]


@pytest.fixture
def logged(tmp_path: Path) -> LoggedRun:
    return LoggedRun(tmp_path / "run", ("prune", "pretrain"))


def output(*arguments: str | Path) -> str:
    result = runner.invoke(app, ["replay", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: str | Path) -> str:
    result = runner.invoke(app, ["replay", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


SETTINGS: list[dict[str, Any]] = [
    {},
    {"rho": 0.3, "floor": 0.02, "delta": 0.4, "loss_weight": 0.5, "forecast_start": 0.05},
    {"reference_loss": REFERENCE, "forecast": "never", "handover": "continue"},
    {"reference_start": 0.1, "handover": "continue"},
    {"policy": "sheared", "reference_loss": REFERENCE, "handover": "continue"},
    {"reference_loss": {"from_model": "larger"}, "forecast": "never"},
    {
        "start": {
            "ratio": {"web": 0.5, "code": 0.3, "wiki": 0.2},
            "reference_ratio": {"web": 0.55, "code": 0.3, "wiki": 0.15},
            "reference_loss": REFERENCE,
        }
    },
    {"reference": "paper"},
    {"reference_loss": "source", "forecast": "replace", "tau": 0.05, "handover": "continue"},
    {"policy": "naive_dro"},
    {"policy": "sheared", "reference_loss": "source"},
    {"policy": "group_dro", "handover": "continue"},
    {"policy": "cvar"},
    {"policy": "ado"},
    {"policy": "constant"},
]


@pytest.mark.parametrize("scheduling", SETTINGS, ids=str)
def test_a_runs_own_policy_gives_its_decisions_again_to_the_bit(
    scheduling: dict[str, Any], tmp_path: Path
) -> None:
    run = LoggedRun(tmp_path / "run", ("prune", "pretrain"), **scheduling)
    replay = replay_run(run.folder)
    assert replay.notes == []
    assert [phase.phase for phase in replay.phases] == ["prune", "pretrain"]
    logged = [record for record in run.records if record["kind"] == "eval"]
    points = [point for phase in replay.phases for point in phase.points]
    assert all(phase.is_identical for phase in replay.phases)
    for record, point in zip(logged, points, strict=True):
        for field in ("ratio", "reference_ratio", "reference_loss", "forecast"):
            assert getattr(point.decision, field) == record[field]
    if scheduling.get("policy") != "constant":
        assert len({tuple(record["ratio"].values()) for record in logged}) > 2
    text = output(run.folder)
    assert text.count("identical to the run's") == 2


def test_a_real_run_is_replayed_to_the_bit(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    values = {
        **recipe_values,
        "scheduling": {"rho": 0.02, "forecast_start": 0.1, "handover": "continue"},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    for command in ("prune", "pretrain"):
        result = runner.invoke(app, [command, str(file)])
        assert result.exit_code == 0, result.output
    replay = replay_run(values["output"])
    assert replay.notes == []
    assert [phase.is_identical for phase in replay.phases] == [True, True]
    last = replay.phases[0].points[-1].decision.ratio
    assert last != replay.initial_ratio
    assert replay.phases[1].points[0].decision.ratio != replay.initial_ratio


def test_any_policy_and_setting_gives_what_it_would_decide_for_those_losses(
    tmp_path: Path,
) -> None:
    logged = LoggedRun(tmp_path / "run", ("pretrain",))
    for name in POLICY_NAMES:
        settings = {"reference_loss": REFERENCE} if name == "sheared" else {}
        assignments = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        replay = replay_run(logged.folder, name, assignments, ["pretrain"])
        policy = make_policy(name, SHARES, 240, FINAL, **settings)
        (phase,) = replay.phases
        for point in phase.points:
            losses = {k: None if math.isnan(v) else v for k, v in point.logged.loss.items()}
            shares = point.logged.realised_share or None
            wanted = policy.update(point.logged.step, losses, point.logged.parameters, shares)
            assert point.decision == wanted
        assert phase.is_identical == (name == "drpruning")


def test_replaying_another_run_s_settings_is_that_run(tmp_path: Path) -> None:
    """The losses do not depend on the policy here, so a replay must give what was logged there."""
    plain = LoggedRun(tmp_path / "plain", ("prune", "pretrain"))
    other = LoggedRun(tmp_path / "other", ("prune", "pretrain"), rho=0.25, handover="continue")
    replay = replay_run(plain.folder, settings=["rho=0.25", "handover=continue"])
    wanted = [r["ratio"] for r in other.records if r["kind"] == "eval"]
    assert [p.decision.ratio for phase in replay.phases for p in phase.points] == wanted
    only = replay_run(plain.folder, None, ["rho=0.25", "handover=continue"], ["pretrain"])
    assert [phase.phase for phase in only.phases] == ["pretrain"]
    assert only.phases[0].points == replay.phases[1].points


def test_a_replay_goes_by_the_data_that_the_run_trained_on(tmp_path: Path) -> None:
    """The losses came about under the run's shares, whatever the replayed policy would give."""
    run = LoggedRun(tmp_path / "run", ("pretrain",), policy="cvar")
    data = [record["data"] for record in run.evals("pretrain")]
    settings = ["forecast_at=equal", "rho=0.5", "floor=0.01"]
    replayed = replay_run(run.folder, "drpruning", settings).phases[0].points
    assert [point.decision.data for point in replayed] == data
    assert replayed[-1].decision.ratio != run.evals("pretrain")[-1]["ratio"]


def test_data_that_an_older_log_does_not_have_follow_from_its_ratios(tmp_path: Path) -> None:
    run = LoggedRun(tmp_path / "run", ("pretrain",), policy="cvar")
    evals = run.evals("pretrain")
    for record in evals:
        del record["data"], record["explanation"]
    replayed = replay_run(run.write().folder).phases[0]
    assert replayed.is_identical
    had = dict.fromkeys(SHARES, 0.0)
    for before, record, point in zip([None, *evals], evals, replayed.points, strict=False):
        for name in SHARES if before else ():
            had[name] += before["ratio"][name] * (record["step"] - before["step"])
        assert point.decision.data == pytest.approx(had)


@pytest.mark.parametrize(
    ("data", "realised", "ratio", "wanted"),
    [
        ({"a": 3.0, "b": 7.0}, {"a": 0.3, "b": 0.7}, {"a": 0.5, "b": 0.5}, {"a": 0.3, "b": 0.7}),
        ({"a": 5.0, "b": 5.0}, {"a": 0.3, "b": 0.7}, {"a": 0.5, "b": 0.5}, {"a": 0.5, "b": 0.5}),
        ({"a": 4.0, "b": 6.0}, {"a": 0.3, "b": 0.7}, {"a": 0.5, "b": 0.5}, {"a": 0.4, "b": 0.6}),
        ({}, {"a": 0.3, "b": 0.7}, {"a": 0.5, "b": 0.5}, {"a": 0.5, "b": 0.5}),
        ({"a": 4.0}, {"a": 0.3, "b": 0.7}, {}, {"a": 0.3, "b": 0.7}),
        ({"a": -4.0, "b": 14.0}, {}, {"a": 0.5, "b": 0.6}, None),
    ],
    ids=["realised", "ratio in force", "neither", "no data", "no ratio", "nonsense"],
)
def test_shares_between_two_evaluations_are_those_that_give_the_logged_data(
    data: dict[str, float],
    realised: dict[str, float],
    ratio: dict[str, float],
    wanted: dict[str, float] | None,
) -> None:
    def point(step: int, **known: Any) -> EvalPoint:
        line = {"kind": "eval", "phase": "prune", "step": step, "loss": {"a": 1.0, "b": 1.0}}
        return read_record(EvalPoint, json.dumps(line | known).encode(), "here")

    before = point(10, ratio=ratio, data={"a": 0.0, "b": 0.0})
    after = point(20, ratio={"a": 0.9, "b": 0.1}, realised_share=realised, data=data)
    assert trained_shares(before, after, ("a", "b")) == wanted
    assert trained_shares(None, point(0), ("a", "b")) is None


def test_a_replay_says_churn_origins_and_how_good_its_forecasts_were(tmp_path: Path) -> None:
    run = LoggedRun(tmp_path / "run", ("pretrain",), forecast_at="equal", tau=0.0)
    text = output(run.folder)
    assert CHECKED in " ".join(text.split())
    churn = [record["explanation"]["churn"] for record in run.evals("pretrain")]
    assert f"mean): {sum(churn) / len(churn):.3f}." in " ".join(text.split())
    assert "Reference losses at the end: forecast at a share of 33.33%" in " ".join(text.split())
    (curves,) = replay_run(run.folder).curves()
    assert [check.done for check in curves.replayed_checks] == [0.2, 0.4, 0.6, 0.8]
    assert curves.replayed_checks == curves.used_checks
    for check in curves.replayed_checks:
        (row,) = (r for r in run.evals("pretrain") if r["step"] == check.step)
        for name, error in check.error.items():
            law = row["explanation"]["forecast_law"][name]
            end = run.evals("pretrain")[-1]
            x = end["data"][name] + law["transfer"] * (end["step"] - end["data"][name])
            predicted = law["A"] * (x + law["offset"]) ** -law["beta"] + law["E"]
            assert error == pytest.approx(predicted - end["loss"][name], abs=1e-9)
    text = " ".join(output(run.folder, "--policy", "constant").split())
    assert CHECKED not in text
    assert "0.000, " in text
    del run.records[-1]  # the end of the phase: nothing has come true yet
    assert CHECKED not in " ".join(output(run.write().folder).split())


def test_a_new_policy_keeps_the_settings_it_knows_and_says_which_it_drops(tmp_path: Path) -> None:
    run = LoggedRun(tmp_path / "run", ("pretrain",), rho=0.3, forecast="never", delta=0.2,
                    reference_loss=REFERENCE)  # fmt: skip
    replay = replay_run(run.folder, "naive_dro")
    assert replay.replayed.options() == {"rho": 0.3, "reference_loss": REFERENCE}
    (note,) = replay.notes
    assert "forecast, delta" in note
    assert "rho" not in note


@pytest.mark.parametrize("word", ["none", "source", "auto"])
def test_a_word_for_reference_losses_gives_way_to_a_policy_without_them(
    word: str, tmp_path: Path
) -> None:
    run = LoggedRun(tmp_path / "run", ("prune", "pretrain"), reference_loss=word)
    for policy in ("constant", "sheared" if word != "none" else "cvar"):
        assert replay_run(run.folder, policy).replayed.policy == policy


def test_naming_the_policy_of_a_run_keeps_the_papers_settings(tmp_path: Path) -> None:
    run = LoggedRun(tmp_path / "run", ("pretrain",), reference="paper").write()
    replay = replay_run(run.folder, "drpruning")
    assert replay.replayed == replay.used
    assert replay.phases[0].is_identical
    other = replay_run(run.folder, "constant")
    assert other.replayed.reference is None


def test_a_replay_says_that_reference_losses_and_forecasts_both_count(tmp_path: Path) -> None:
    run = LoggedRun(tmp_path / "run", ("prune", "pretrain"))
    text = " ".join(output(run.folder).split())
    both = "loss of the source model, and forecast at a share of 33.33%"
    assert f"Reference losses at the end: {both}." in text
    text = " ".join(output(run.folder, "--set", "forecast=never").split())
    assert "Reference losses at the end: loss of the source model." in text
    assert CHECKED not in text
    text = " ".join(output(run.folder, "--set", "forecast=replace").split())
    assert "Reference losses at the end: forecast at a share of 33.33%." in text


def test_a_missing_loss_leaves_the_ratio_where_it_is(logged: LoggedRun) -> None:
    del next(r for r in logged.records if r["phase"] == "pretrain" and r["step"] == 160)["loss"][
        "web"
    ]
    logged.write()
    (phase,) = replay_run(logged.folder, "group_dro", (), ["pretrain"]).phases
    ratios = {point.logged.step: point.decision.ratio for point in phase.points}
    unusable = {p.logged.step: p.decision.explanation.unusable for p in phase.points}
    assert ratios[120] == ratios[140] == ratios[160] != ratios[180]
    assert set(unusable[140]) == {"code"}
    assert set(unusable[160]) == {"web"}


def test_means_are_over_the_steps_of_training(logged: LoggedRun) -> None:
    curves = replay_run(logged.folder, "cvar", (), ["prune"]).curves()[0]
    for row in curves.rows():
        shares = curves.replayed[row.domain]
        assert row.replayed_mean == pytest.approx(sum(shares[:-1]) / (len(shares) - 1))
        at = curves.steps.index(row.step)
        assert row.difference == shares[at] - curves.used[row.domain][at]
        assert abs(row.difference) == max(
            abs(a - b) for a, b in zip(shares, curves.used[row.domain], strict=True)
        )
    assert sum(row.replayed_mean for row in curves.rows()) == pytest.approx(1)


def test_a_log_that_does_not_say_the_final_parameters_is_replayed_with_a_note(
    logged: LoggedRun,
) -> None:
    for record in logged.records:
        record.pop("final_parameters", None)
    del logged.records[-1]
    logged.records = [r for r in logged.records if r["phase"] != "prune" or r["step"] < 20]
    logged.write()
    replay = replay_run(logged.folder)
    (note,) = replay.notes
    assert note.startswith("prune: ")
    assert "parameters" in note
    assert replay.phases[1].is_identical


def test_a_run_whose_own_policy_does_not_fit_its_log_is_noted(logged: LoggedRun) -> None:
    point = next(r for r in logged.records if r["phase"] == "prune" and r["step"] == 50)
    point["ratio"] = dict(SHARES)
    (note,) = replay_run(logged.write().folder).notes
    assert note.startswith("prune: nothing was changed")


def test_the_run_folder_stays_as_it_is_wherever_it_lies(logged: LoggedRun, tmp_path: Path) -> None:
    moved = logged.folder.rename(tmp_path / "moved")
    before = {path: path.read_bytes() for path in moved.rglob("*")}
    output(moved, "--policy", "cvar")
    assert {path: path.read_bytes() for path in moved.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "nave_dro"], ["--policy nave_dro", "naive_dro"]),
        (
            ["--policy", "sheared", "--set", "reference_loss=none"],
            ["scheduling.reference_loss", "sheared"],
        ),
        (["--policy", "constant", "--set", "rho=0.2"], ["constant", "rho"]),
        (["--set", "roh=0.2"], ["scheduling.roh", "did you mean 'rho'"]),
        (["--set", "rho=-1"], ["scheduling.rho", "greater than 0"]),
        (["--set", "rho"], ["--set rho: write --set KEY=VALUE"]),
        (["--set", "scheduling.=1"], ["--set scheduling.=1: write --set KEY=VALUE"]),
        (["--set", "rho=[1"], ["--set rho:", "not valid YAML"]),
        (["--set", "pretrain.steps=9"], ["scheduling.pretrain: unknown key"]),
        (
            ["--set", "reference_loss={from_model: big}"],
            ["has not measured big", "drprune reference-loss", "--model big", "start=FILE"],
        ),
        (["--set", "floor=0.5"], ["scheduling", "floor"]),
        (["--set", "reference_loss={web: 1.0}"], ["scheduling.reference_loss", "code"]),
        (["--phase", "prun"], ["--phase prun", "prune, pretrain"]),
        (["--phase", "prune", "--phase", "prun"], ["--phase prun:"]),
        (["--output", "replay.txt"], [".html or .json"]),
    ],
    ids=" ".join,
)
def test_wrong_input_is_named(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    run = LoggedRun(tmp_path / "run", ("prune", "pretrain"), reference_loss="none")
    message = refused(run.folder, *arguments)
    for word in words:
        assert word in message


def test_a_folder_without_anything_to_replay_is_named(tmp_path: Path) -> None:
    assert "no such directory" in refused(tmp_path / "nowhere")
    assert "recipe.yaml" in refused(tmp_path)
    run = LoggedRun(tmp_path / "run", ("pretrain",), handover="continue")
    (run.folder / "metrics.jsonl").unlink()
    assert "no evaluation" in refused(run.folder)


def test_continuing_needs_the_evaluations_of_pruning(logged: LoggedRun) -> None:
    logged.records = [r for r in logged.records if r["phase"] == "pretrain"]
    logged.write()
    message = refused(logged.folder, "--set", "handover=continue")
    assert "scheduling.handover" in message
    assert "handover=fresh" in message


def test_a_log_of_other_domains_is_named_with_its_step(logged: LoggedRun) -> None:
    logged.records[1]["loss"]["news"] = 2.0
    message = refused(logged.write().folder)
    assert "metrics.jsonl, prune, evaluation at step 0" in message
    assert "news" in message


def test_the_terminal_shows_each_domain_within_80_columns(logged: LoggedRun) -> None:
    text = output(logged.folder, "--set", "rho=0.3", "--set", "floor=0.01")
    assert max(map(len, text.splitlines())) <= 80
    assert "not what training under it would have given" in " ".join(text.split())
    figure = [line for line in text.splitlines() if re.search(r"(used|replayed) +[▁-█]", line)]
    assert len(figure) == 2 * 2 * len(SHARES)


@pytest.mark.parametrize("width", [30, 80, 200])
def test_any_terminal_gets_text_it_can_show(logged: LoggedRun, width: int, tmp_path: Path) -> None:
    with (tmp_path / "out.txt").open("w", encoding="ascii") as file:
        print_replay(replay_run(logged.folder, "cvar"), Console(file=file, width=width))
    lines = (tmp_path / "out.txt").read_text("ascii").splitlines()
    assert max(map(len, lines)) <= width
    assert any("web" in line for line in lines)


@given(
    shares=st.lists(st.floats(0, 1) | st.just(math.nan), min_size=1, max_size=60),
    levels=st.sampled_from(["▁▂▃▄▅▆▇█", "0123456789"]),
)
def test_sparklines_keep_the_order_of_the_shares(shares: list[float], levels: str) -> None:
    known = [share for share in shares if not math.isnan(share)]
    low, high = min(known, default=math.nan), max(known, default=math.nan)
    line = sparkline(shares, low, high, levels)
    assert len(line) == len(shares)
    heights = {s: levels.index(c) for s, c in zip(shares, line, strict=True) if not math.isnan(s)}
    ordered = [heights[share] for share in sorted(heights)]
    assert ordered == sorted(ordered)
    if known and high > low:
        assert (heights[low], heights[high]) == (0, len(levels) - 1)


def test_json_holds_every_decision(logged: LoggedRun, tmp_path: Path) -> None:
    file = tmp_path / "new" / "replay.json"
    output(logged.folder, "--set", "rho=0.3", "--output", file)
    written = json.loads(file.read_text())
    replay = replay_run(logged.folder, settings=["rho=0.3"])
    assert written["replayed"]["rho"] == 0.3
    assert written["used"]["rho"] == replay.used.rho
    for phase in replay.phases:
        rows = written["phases"][phase.phase]["evaluations"]
        for row, point in zip(rows, phase.points, strict=True):
            assert row["step"] == point.logged.step
            assert row["used"]["ratio"] == point.logged.ratio
            assert row["replayed"]["ratio"] == point.decision.ratio
            assert row["replayed"]["explanation"] == record_fields(point.decision.explanation)


def test_the_page_is_whole_and_has_both_lines_of_every_domain(
    logged: LoggedRun, tmp_path: Path
) -> None:
    file = tmp_path / "replay.html"
    output(logged.folder, "--set", "reference=paper", "--output", file)
    page = file.read_text()
    for phase in ("prune", "pretrain"):
        for name in SHARES:
            for line in (f"used-{name}", f"replayed-{name}"):
                assert re.search(rf'id="replay-{phase}-ratio-\d+-{line}"', page)
            assert re.search(rf'id="replay-{phase}-reference-\d+-replayed-reference-{name}"', page)
    idents = re.findall(r'\bid="([^"]+)"', page)
    assert len(idents) == len(set(idents))
    assert not re.findall(r"(?:src|href)=\"(?!#)", page)
    assert "not what training under it would have given" in " ".join(page.split())
    write_replay(replay_run(logged.folder), [file])
    page = file.read_text()
    assert "is identical to the run" in page
    assert "replayed-reference" not in page


def test_names_with_markup_are_shown_as_they_are(logged: LoggedRun, tmp_path: Path) -> None:
    folder = logged.folder.rename(tmp_path / "a[bold]b<i>")
    assert "a[bold]b<i>" in "".join(output(folder).split())
    write_replay(replay_run(folder), [tmp_path / "page.html"])
    assert "a[bold]b&lt;i&gt;" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(None, "does not say which ratio"), ({n: s + 1e-15 for n, s in SHARES.items()}, "rounding")],
    ids=["unknown", "rounded"],
)
def test_a_log_of_another_trainer_is_compared_as_far_as_it_goes(
    ratio: dict[str, float] | None, words: str, tmp_path: Path
) -> None:
    run = LoggedRun(tmp_path / "run", ("pretrain",), policy="constant")
    evals = [record for record in run.records if record["kind"] == "eval"]
    run.records = [{**record, "ratio": ratio, "reference_ratio": None} for record in evals]
    text = " ".join(output(run.write().folder, "--output", tmp_path / "page.html").split())
    assert words in text
    assert words in (tmp_path / "page.html").read_text()


def test_examples_and_docs_work_on_a_run_with_the_default_scheduling(
    logged: LoggedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (replay,) = [
        c for c in app.registered_commands if c.callback and c.callback.__name__ == "replay"
    ]
    examples = re.findall(r"drprune replay runs/a(.*?)(?:  |$)", replay.epilog or "", re.MULTILINE)
    said = re.findall(r"`drprune replay RUN(.*?)`", (ROOT / "README.md").read_text())
    assert len(examples) >= 3
    assert said
    for arguments in (*examples, *said):
        assert "replayed" in output(logged.folder, *shlex.split(arguments))


@pytest.mark.parametrize("name", ["o😀run", "ünïcode", "a b: {c", "quote'\""])
def test_a_folder_of_any_name_is_found(name: str, tmp_path: Path) -> None:
    scheduling = {"reference_loss": {"from_model": "larger"}, "forecast": "never"}
    run = LoggedRun(tmp_path / "run", ("pretrain",), **scheduling)
    folder = run.folder.rename(tmp_path / name)
    assert "identical to the run's" in output(folder, "--output", folder / "replay.json")
    assert json.loads((folder / "replay.json").read_text("utf-8"))["run"] == str(folder)


@pytest.mark.parametrize("file", ["evaluation/pruned.json", "prune/plan.json", "evaluation/x.json",
                                  "prune/similarity.json"])  # fmt: skip
def test_files_that_a_replay_does_not_need_may_be_damaged(file: str, logged: LoggedRun) -> None:
    (logged.folder / file).parent.mkdir(exist_ok=True)
    (logged.folder / file).write_text("{")
    for record in logged.records:
        record.pop("final_parameters", None)
    assert "identical to the run's" in output(logged.write().folder)


def test_settings_may_be_named_as_in_the_other_commands(logged: LoggedRun) -> None:
    settings = ["rho=0.2", "reference_loss={web: 1.0, code: 1, wiki: 1}", "reference_loss.web=1.5"]
    plain = replay_run(logged.folder, settings=settings)
    named = replay_run(logged.folder, settings=[f"scheduling.{each}" for each in settings])
    assert plain == named
    assert plain.replayed.rho == 0.2


def test_phases_can_be_named_one_by_one(logged: LoggedRun) -> None:
    both = output(logged.folder, "--phase", "pretrain", "--phase", "prune")
    assert both == output(logged.folder)
    assert output(logged.folder, "--phase", "prune").count("identical to the run's") == 1


def test_policy_and_settings_are_described_for_people() -> None:
    third = dict.fromkeys(map(str, range(40)), 1 / 3)
    section = Scheduling(rho=0.1 + 0.2, forecast="never", floor=0.01, reference_loss=third)
    text = describe(section)
    assert "rho=0.3," in text
    assert "forecast=never" in text
    assert "and 32 more" in text
    start = {
        "ratio": dict.fromkeys("abcdefg", 1 / 7),
        "reference_loss": dict.fromkeys("abcdefg", 2 / 3),
    }
    text += describe(Scheduling.model_validate({"start": start}))
    assert "start={ratio: {a: 0.1429, " in text
    assert not re.search(r"\d\.\d{5}", text)
    assert len(text) < 400


@pytest.fixture
def without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    find = drpruning.cli.replay_tables.importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "jinja2" else find(name, *a)
    )


@pytest.mark.usefixtures("without_pages")
def test_nothing_is_written_where_a_page_cannot_be_made(logged: LoggedRun, tmp_path: Path) -> None:
    out = tmp_path / "out"
    message = refused(logged.folder, "--output", out / "z.json", "--output", out / "z.html")
    assert "z.html: a page needs jinja2: pip install 'drpruning[train]'" in message
    assert not out.exists()
    output(logged.folder, "--output", out / "z.json")


def test_places_are_checked_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "is-dir.html").mkdir()
    for outputs in (["is-dir.html"], ["z.json", "is-dir.html"], ["z.json", "z.txt"]):
        options = [word for name in outputs for word in ("--output", str(tmp_path / name))]
        message = refused(tmp_path / "no-run", *options)  # else the missing run would be named
        assert f"--output {tmp_path / outputs[-1]}" in message
    assert [path.name for path in tmp_path.iterdir()] == ["is-dir.html"]


def test_the_table_is_printed_even_if_a_file_fails_at_last(
    logged: LoggedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("drpruning.cli.replay_tables.atomic_write", full)
    command = ["replay", str(logged.folder), "--output", str(tmp_path / "z.json")]
    result = runner.invoke(app, command)
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert "identical to the run's" in result.stdout


def test_a_long_replay_shows_how_far_it_is(
    logged: LoggedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    reporter = Reporter(console=Console(file=screen, force_terminal=True, width=100))
    replay_run(logged.folder, "cvar", reporter=reporter)
    assert screen.getvalue() == ""
    monkeypatch.setattr(drpruning.runs.replay, "PATIENCE", -1.0)
    replay_run(logged.folder, "cvar", reporter=reporter)
    assert "24/24" in screen.getvalue()


def test_a_place_that_cannot_be_written_is_named(logged: LoggedRun) -> None:
    with pytest.raises(BadInput, match=r"--output .*recipe.yaml"):
        write_replay(replay_run(logged.folder), [logged.recipe_file() / "replay.json"])
