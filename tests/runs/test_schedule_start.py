"""What one run has found as the start of another: exported, checked, begun with."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from drpruning.common.errors import BadInput
from drpruning.pipeline.run import Run
from drpruning.recipe import load_recipe, parse_recipe
from drpruning.runs.policy import phase_policy
from drpruning.runs.schedule_start import export_schedule, start_text
from drpruning.scheduling import POLICY_NAMES, Policy, worst_case_ratio
from helpers.base_install import without_extras
from helpers.small_runs import DOMAINS, FOUND, drprune, evaluations, only_pretraining, run, write


@pytest.fixture
def pretraining(recipe_values: dict[str, Any]) -> dict[str, Any]:
    return only_pretraining(recipe_values)


def started_policy(values: dict[str, Any], **scheduling: Any) -> Policy:
    recipe = parse_recipe({**values, "scheduling": {"start": FOUND, **scheduling}})
    assert recipe.pretrain is not None
    return phase_policy(recipe, recipe.pretrain, final_params=1.0)


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_every_policy_starts_where_it_is_told_to(pretraining: dict[str, Any], name: str) -> None:
    policy = started_policy(pretraining, policy=name)
    assert policy.ratio == FOUND["ratio"]
    state = policy.state_dict()
    for key in ("reference_ratio", "reference_loss"):
        assert state.get(key, FOUND[key]) == FOUND[key]
    assert (name in {"drpruning", "naive_dro", "sheared"}) == ("reference_loss" in state)


def test_parts_that_a_start_lacks_are_the_recipes(pretraining: dict[str, Any]) -> None:
    shares = {name: domain["share"] for name, domain in pretraining["data"]["domains"].items()}
    only = {"reference_loss": FOUND["reference_loss"]}
    policy = started_policy(pretraining, start=only)
    assert policy.ratio == pytest.approx(shares)
    assert policy.state_dict()["reference_ratio"] == pytest.approx(shares)
    assert policy.state_dict()["reference_loss"] == FOUND["reference_loss"]


def test_start_that_the_floor_excludes_is_refused(pretraining: dict[str, Any]) -> None:
    tilted = {"reference_ratio": {"numbers": 0.9, "colours": 0.08, "animals": 0.02}}
    with pytest.raises(BadInput, match=r"scheduling\.start: .*floor"):
        started_policy(pretraining, floor=0.09, rho=0.01, bound=5.0, start=tilted)
    low = {"ratio": {"numbers": 0.9, "colours": 0.08, "animals": 0.02}}
    for policy in ("drpruning", "naive_dro"):
        with pytest.raises(BadInput, match=r"start\.ratio: 0\.02 for animals is below .*floor"):
            started_policy(pretraining, policy=policy, floor=0.05, start=low)
    assert started_policy(pretraining, floor=0.02, start=low).ratio == low["ratio"]


def test_floor_above_what_there_is_is_refused_without_a_share_to_steer(
    pretraining: dict[str, Any], tmp_path: Path
) -> None:
    pretraining["scheduling"] = {"floor": 1.0}
    message = drprune("plan", write(pretraining, tmp_path / "r.yaml"), status=2)
    assert "floor" in message
    assert "can be steered" not in message


def test_start_outside_the_bound_is_refused(pretraining: dict[str, Any]) -> None:
    twice = {"reference_ratio": {"numbers": 0.55, "colours": 0.25, "animals": 0.2}}
    limited = {"bound": 2.0}
    assert started_policy(pretraining, start=twice, **limited).ratio["animals"] == pytest.approx(
        0.1
    )
    far = {"reference_ratio": {"numbers": 0.5, "colours": 0.25, "animals": 0.25}}
    with pytest.raises(BadInput, match=r"start\.reference_ratio: 0\.25 for animals is 2\.5 times"):
        started_policy(pretraining, start=far, **limited)
    near = {"reference_ratio": {"numbers": 0.57, "colours": 0.41, "animals": 0.02}}
    with pytest.raises(BadInput, match=r"0\.02 for animals is 5 times off its share of 0\.1"):
        started_policy(pretraining, start=near, **limited)
    unmoved = limited | {"moving_reference": False}
    for free in ({"bound": 2.5}, unmoved, {"policy": "naive_dro"}):
        state = started_policy(pretraining, start=far, **free).state_dict()
        assert state["reference_ratio"] == far["reference_ratio"]


def test_run_of_another_start_can_go_on_from_its_own_recipe(
    pretraining: dict[str, Any], tmp_path: Path
) -> None:
    found = write(FOUND, tmp_path / "found.yaml")
    pretraining["scheduling"] = {"start": str(found)}
    recipe = write(pretraining, tmp_path / "r.yaml")
    drprune("pretrain", recipe)
    found.write_text(start_text({"ratio": FOUND["ratio"]}))
    message = drprune("pretrain", recipe, status=2)
    own = Path(pretraining["output"]) / "recipe.yaml"
    assert "scheduling.start.reference_loss" in message
    assert f"show that one with `drprune run {own}`" in message
    assert "done already" in drprune("pretrain", own)


def test_policy_without_references_says_what_first_ratio_it_takes(
    pretraining: dict[str, Any], tmp_path: Path
) -> None:
    def planned(policy: str, **start: Any) -> str:
        values = pretraining | {"scheduling": {"policy": policy, "start": start}}
        return drprune("plan", write(values, tmp_path / "r.yaml"))

    ratio, losses = FOUND["ratio"], FOUND["reference_loss"]
    assert "step 0 replaces it" in planned("drpruning", ratio=ratio, reference_loss=losses)
    assert "step 0 replaces it" in planned("naive_dro", ratio=ratio)
    for text in (
        planned("drpruning", ratio=ratio),
        planned("sheared", ratio=ratio, reference_loss=losses),
        planned("group_dro", ratio=ratio),
    ):
        assert "first ratio: numbers 50.00%" in text
        assert "replaces" not in text


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_evaluation_at_step_0_replaces_the_first_ratio_where_the_plan_says_so(
    pretraining: dict[str, Any], policy: str, tmp_path: Path
) -> None:
    pretraining["scheduling"] = {"policy": policy, "start": FOUND}
    text = drprune("plan", write(pretraining, tmp_path / "r.yaml"))
    losses = {"numbers": 2.5, "colours": 2.0, "animals": 3.0}
    after = []
    for ratio in (FOUND["ratio"], {"numbers": 0.4, "colours": 0.4, "animals": 0.2}):
        started = started_policy(pretraining, policy=policy, start=FOUND | {"ratio": ratio})
        after.append(started.update(step=0, losses=losses).ratio)
    assert ("replaces it" in text) == (after[0] == after[1])


@pytest.mark.parametrize("handover", ["fresh", "continue"])
def test_what_a_run_has_found_is_where_the_next_begins(
    recipe_values: dict[str, Any], tmp_path: Path, handover: str
) -> None:
    recipe_values["scheduling"] = {"reference_start": 0.2}
    first = run(recipe_values, "prune", "pretrain")
    file = tmp_path / "found.yaml"
    text = drprune("export-schedule", first, "--output", file)
    assert f"drprune run RECIPE --set scheduling.start={file}" in text
    assert "warning" not in text
    last = evaluations(first, "pretrain")[-1]
    exported = yaml.safe_load(file.read_text())
    assert exported == {name: last[name] for name in FOUND}

    second = copy.deepcopy(recipe_values)
    second["output"] = str(tmp_path / "second")
    second["data"]["prepared"] = str(first / "data")
    second["scheduling"] = {"handover": handover, "forecast": "never", "start": str(file)}
    second["scheduling"] |= {"rho": 0.1, "tau": 0.0, "floor": "smallest_reference"}
    with Run(load_recipe(write(second, tmp_path / "r.yaml"))).session("test") as this:
        this.run(("prune", "pretrain"))
    file.unlink()
    assert Run.open(this.folder).recipe.scheduling.start == this.recipe.scheduling.start
    for phase in ("prune", "pretrain"):
        began = evaluations(this.folder, phase)[0]
        assert began["reference_loss"] == exported["reference_loss"]
        if phase == "pretrain" and handover == "continue":
            ended = evaluations(this.folder, "prune")[-1]
            assert began["reference_ratio"] == ended["reference_ratio"]
            assert began["reference_ratio"] != exported["reference_ratio"]
            continue
        assert began["reference_ratio"] == exported["reference_ratio"]
        excess = [began["loss"][d] - exported["reference_loss"][d] for d in DOMAINS]
        worst = worst_case_ratio(excess, [exported["reference_ratio"][d] for d in DOMAINS], 0.1)
        assert [began["ratio"][d] for d in DOMAINS] == pytest.approx(worst.tolist(), abs=1e-12)


def test_first_segment_follows_an_exported_ratio_that_nothing_moves(
    pretraining: dict[str, Any],
) -> None:
    pretraining["scheduling"] = {"policy": "constant", "start": {"ratio": FOUND["ratio"]}}
    folder = run(pretraining, "pretrain")
    began, after = evaluations(folder, "pretrain")[:2]
    assert began["ratio"] == FOUND["ratio"]
    blocks = pretraining["pretrain"]["global_batch"] * pretraining["pretrain"]["evaluate_every"]
    for domain, share in FOUND["ratio"].items():
        assert abs(after["realised_share"][domain] - share) * blocks < 1


def finished_run(folder: Path, recipe: dict[str, Any], **last: Any) -> Path:
    """A run folder by hand: pruning that is over and pretraining that is under way."""
    folder.mkdir()
    write(recipe, folder / "recipe.yaml")
    point = {"kind": "eval", "time": 1.7e9, "loss": dict.fromkeys(DOMAINS, 2.0), **FOUND}
    records = [
        {"kind": "start", "phase": "prune", "step": 0, "total_steps": 20, "global_batch": 8,
         "sequence_length": 16, "final_parameters": 9},
        {**point, "phase": "prune", "step": 20},
        {"kind": "end", "phase": "prune", "step": 20, "total_seconds": 1.0},
        {"kind": "start", "phase": "pretrain", "step": 0, "total_steps": 12, "global_batch": 8,
         "sequence_length": 16, "final_parameters": 9},
        {**point, **last, "phase": "pretrain", "step": 6},
    ]  # fmt: skip
    lines = [json.dumps({"time": 1.7e9, **record}) + "\n" for record in records]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def test_unfinished_run_is_exported_with_a_warning(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    folder = finished_run(
        tmp_path / "made", recipe_values, reference_loss={"numbers": 1.0, "colours": None}
    )
    latest = export_schedule(folder)
    assert set(latest.start) == {"ratio", "reference_ratio"}
    assert "pretrain is not complete (step 6 of 12)" in latest.warnings[0]
    assert "colours, animals" in latest.warnings[1]
    pruned = export_schedule(folder, "prune")
    assert pruned.start == FOUND
    assert pruned.warnings == []
    text = start_text(pruned.start, pruned.comments)
    assert "# phase: prune, step 20 of 20" in text
    assert "# initial shares: {numbers: 0.6, colours: 0.3, animals: 0.1}" in text
    assert yaml.safe_load(text) == FOUND


def test_reference_losses_of_zero_are_none(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    zeros = dict.fromkeys(DOMAINS, 0.0)
    found = export_schedule(finished_run(tmp_path / "made", recipe_values, reference_loss=zeros))
    assert set(found.start) == {"ratio", "reference_ratio"}


@pytest.mark.parametrize("phase", ["prune", "tune"])
def test_what_is_not_there_is_not_exported(
    recipe_values: dict[str, Any], tmp_path: Path, phase: str
) -> None:
    assert "no evaluation" in drprune("export-schedule", tmp_path, "--phase", phase, status=2)
    folder = finished_run(tmp_path / "made", recipe_values)
    target = tmp_path / "file"
    target.write_text("")
    arguments: list[str | Path] = [
        "export-schedule",
        folder,
        "--phase",
        phase,
        "--output",
        target / "x.yaml",
    ]
    message = drprune(*arguments, status=2)
    assert ("--output" if phase == "prune" else "choose one of prune, pretrain") in message


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ({"ratio": None}, "ratio: there is none"),
        ({"ratio": {"numbers": 1.2, "colours": -0.4, "animals": 0.2}}, "ratio.colours"),
        ({"ratio": {"numbers": 0.5, "colours": 0.3, "animals": 0.3}}, "sum to 1.1"),
        ({"ratio": {"numbers": 0.5, "colours": 0.5}}, "is not of the domains"),
        ({"reference_ratio": {"numbers": 0.5, "colours": 0.5, "animals": 0.0}}, "animals"),
        ({"reference_loss": dict.fromkeys(DOMAINS, -1.0)}, "reference_loss.numbers"),
    ],
)
def test_what_no_recipe_would_take_is_not_exported(
    recipe_values: dict[str, Any], tmp_path: Path, last: dict[str, Any], words: str
) -> None:
    folder = finished_run(tmp_path / "made", recipe_values, **last)
    message = drprune("export-schedule", folder, status=2)
    assert "metrics.jsonl: the evaluation of pretrain at step 6 is nothing to start from" in message
    assert words in message
    assert not (folder / "start.yaml").exists()
    drprune("export-schedule", folder, "--phase", "prune")


def test_export_needs_recipe_and_metrics_alone(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    folder = finished_run(tmp_path / "made", recipe_values)
    for damaged in ("evaluation/model.json", "prune/plan.json", "prune/similarity.json"):
        (folder / damaged).parent.mkdir(exist_ok=True)
        (folder / damaged).write_text("{")
    assert export_schedule(folder, "prune").start == FOUND


def test_only_files_for_a_start_are_replaced(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "made", recipe_values)
    for output in (folder / "recipe.yaml", folder / "metrics.jsonl", folder, Path()):
        before = {p: p.read_bytes() for p in folder.iterdir()}
        assert "--output" in drprune("export-schedule", folder, "--output", output, status=2)
        assert {p: p.read_bytes() for p in folder.iterdir()} == before
    assert "--output" in drprune("export-schedule", folder, "--output", "", status=2)
    own = folder / "start.yaml"
    own.write_text("ratio: {a: 1.0}\n")
    for _ in range(2):
        drprune("export-schedule", folder)
        assert yaml.safe_load(own.read_text()) == FOUND
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_comments_say_where_reference_losses_come_from(
    pretraining: dict[str, Any], tmp_path: Path
) -> None:
    origins = {"numbers": "source", "colours": "forecast", "animals": "forecast"}
    said = {"reference_origin": origins, "forecast_share": dict.fromkeys(origins, 1 / 3)}
    folder = finished_run(tmp_path / "run", pretraining, explanation=said)
    found = export_schedule(folder)
    assert found.comments[-3:-1] == [
        "reference losses of numbers: loss of the source model",
        "reference losses of colours, animals: forecast at a share of 33.33%",
    ]
    assert "scheduling.forecast: replace" in found.comments[-1]
    assert yaml.safe_load(start_text(found.start, found.comments)) == FOUND
    older = export_schedule(finished_run(tmp_path / "older", pretraining))
    assert older.comments == [c.replace("/run", "/older") for c in found.comments[:-3]]
    given = {"reference_origin": dict.fromkeys(origins, "given")}
    last = export_schedule(finished_run(tmp_path / "given", pretraining, explanation=given))
    assert last.comments[-1] == "reference losses of numbers, colours, animals: given"


def test_name_of_a_run_cannot_get_out_of_the_comments(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    folder = finished_run(tmp_path / "a\nratio: {b: 1.0}", recipe_values)
    found = export_schedule(folder, "prune")
    assert yaml.safe_load(start_text(found.start, found.comments)) == FOUND


def test_export_and_start_work_without_the_extras(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    folder = finished_run(tmp_path / "made", recipe_values)
    recipe = write(recipe_values, tmp_path / "r.yaml")
    exported = without_extras(
        f"from drpruning.cli.commands import app\napp(['export-schedule', {str(folder)!r}])"
    )
    assert exported.returncode == 0, exported.stderr
    assert "warning: pretrain is not complete" in exported.stderr
    start = f"scheduling.start={folder / 'start.yaml'}"
    arguments = ["plan", str(recipe), "--set", start]
    planned = without_extras(f"from drpruning.cli.commands import app\napp({arguments!r})")
    assert planned.returncode == 0, planned.stderr
    assert "reference losses: scheduling.start" in planned.stdout
