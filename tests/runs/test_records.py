"""Reading run folders: tolerant of what is not there, strict about what is wrong."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drpruning.common.errors import BadInput
from drpruning.runs.records import load_phases, load_run

MakeRun = Callable[..., Any]


def test_reads_what_was_written(complete_run: Any) -> None:
    run = load_run(complete_run.folder)
    records = [
        json.loads(line)
        for line in (complete_run.folder / "metrics.jsonl").read_text().splitlines()
    ]
    for phase in ("prune", "pretrain"):
        evals = [r for r in records if r["kind"] == "eval" and r["phase"] == phase]
        steps = [r for r in records if r["kind"] == "step" and r["phase"] == phase]
        assert [point.step for point in run.phases[phase].evals] == [r["step"] for r in evals]
        assert [point.ratio for point in run.phases[phase].evals] == [r["ratio"] for r in evals]
        assert [point.loss for point in run.phases[phase].steps] == [r["loss"] for r in steps]
    assert run.domains == complete_run.domains
    assert run.initial_ratio == complete_run.share
    assert list(run.evaluations) == ["source", "pruned", "model"]
    assert run.plan is not None
    assert run.plan.removed_layers == [3, 6]
    assert [len(kept) for kept in run.plan.intermediate] == [440] * 6
    assert len(run.similarity) == 17


def test_null_is_not_known(complete_run: Any) -> None:
    first = load_run(complete_run.folder).phases["prune"].evals[0]
    assert first.realised_share == {}
    assert all(math.isnan(value) for value in first.reference_loss.values())


@pytest.mark.parametrize("explanation", [None, {}, {"moved": True, "rho": None, "floor": None}])
def test_an_explanation_says_what_it_says(fake_run: MakeRun, explanation: Any) -> None:
    run = fake_run()
    point = run.evaluation_point("prune", 0, 100, run.share, run.share)
    run.append(point | {"explanation": explanation})
    said = load_run(run.folder).phases["prune"].evals[0].explanation
    assert not said.has_limit
    assert said.ratio_updated is None
    assert said.floor == said.refused == said.forecast_interval == {}


def test_unknown_ends_of_an_interval(fake_run: MakeRun) -> None:
    run = fake_run()
    point = run.evaluation_point("prune", 0, 100, run.share, run.share)
    run.append(point | {"explanation": {"forecast_interval": {"web": [2, None]}}})
    said = load_run(run.folder).phases["prune"].evals[0].explanation
    assert said.forecast_interval["web"] == pytest.approx((2.0, math.nan), nan_ok=True)


def test_an_empty_folder_is_an_empty_record(fake_run: MakeRun) -> None:
    run = load_run(fake_run().folder)
    assert run.is_empty
    assert run.phases == {}
    assert run.domains == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nowhere"):
        load_run(tmp_path / "nowhere")


@pytest.mark.parametrize("tail", ['{"kind": "st', '{"kind"', "{", '{"kind": "step", "x": "\xc3'])
def test_a_torn_last_line_is_left_out(fake_run: MakeRun, tail: str) -> None:
    run = fake_run()
    run.metrics("prune", total_steps=100, every=25)
    before = load_run(run.folder)
    with (run.folder / "metrics.jsonl").open("ab") as file:
        file.write(tail.encode("latin-1"))
    assert load_run(run.folder) == before


def test_garbage_in_the_middle_names_the_line(fake_run: MakeRun) -> None:
    run = fake_run()
    run.metrics("prune", total_steps=100, every=25)
    path = run.folder / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[4] = lines[4][:20]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(BadInput, match=r"metrics\.jsonl, line 5"):
        load_run(run.folder)


def test_a_complete_last_line_of_garbage_is_not_torn(fake_run: MakeRun) -> None:
    run = fake_run()
    (run.folder / "metrics.jsonl").write_text("nonsense\n")
    with pytest.raises(BadInput, match="line 1"):
        load_run(run.folder)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"step": "ten"}, "step"),
        ({"step": None}, "step"),
        ({"loss": [1, 2]}, "loss"),
        ({"loss": {"web": "low"}}, "loss"),
        ({"ratio": 0.5}, "ratio"),
        ({"kind": None}, "kind"),
        ({"phase": 3}, "phase"),
        ({"update_seconds": True}, "update_seconds"),
        ({"explanation": "none"}, "explanation"),
        ({"explanation": {"rho": "0.1"}}, "explanation.rho"),
        ({"explanation": {"ratio_updated": 1}}, "explanation.ratio_updated"),
        ({"explanation": {"unusable": ["web"]}}, "explanation.unusable"),
        ({"explanation": {"refused": {"web": 3}}}, "explanation.refused"),
        ({"explanation": {"at_floor": {"web": 1}}}, "explanation.at_floor"),
        ({"explanation": {"floor": {"web": "low"}}}, "explanation.floor"),
        ({"explanation": {"forecast_interval": {"web": [1]}}}, "explanation.forecast_in"),
        ({"explanation": {"forecast_interval": {"web": 1}}}, "explanation.forecast_in"),
    ],
)
def test_a_wrong_field_is_named(fake_run: MakeRun, change: dict[str, Any], field: str) -> None:
    run = fake_run()
    point = run.evaluation_point("prune", 0, 100, run.share, run.share)
    run.append(run.start("prune", 100), point | change, point)
    with pytest.raises(BadInput, match=rf"line 2: field '{field}"):
        load_run(run.folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe.yaml", "a: [1"),
        ("recipe.yaml", "- a"),
        ("evaluation/model.json", "{"),
        ("evaluation/model.json", '{"name": "model"}'),
        ("prune/similarity.json", '{"rows": 3}'),
        ("prune/similarity.json", '{"rows": [4]}'),
        ("prune/plan.json", "[]"),
        ("prune/plan.json", '{"source": {}, "target": {}}'),
    ],
)
def test_other_files_are_named_too(fake_run: MakeRun, name: str, content: str) -> None:
    path = fake_run().folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(BadInput, match=path.name):
        load_run(path.parents[len(Path(name).parts) - 1])


@pytest.mark.parametrize(
    "damaged", ["evaluation/model.json", "prune/similarity.json", "prune/plan.json"]
)
def test_phases_are_read_whatever_else_is_damaged(fake_run: MakeRun, damaged: str) -> None:
    run = fake_run().everything()
    whole = load_run(run.folder)
    (run.folder / damaged).write_text("{")
    phases = load_phases(run.folder)
    assert (phases.recipe, phases.recipe_text) == (whole.recipe, whole.recipe_text)
    assert phases.phases == whole.phases
    assert (phases.evaluations, phases.similarity, phases.plan) == ({}, [], None)


def test_more_fields_and_kinds_are_passed_over(fake_run: MakeRun) -> None:
    run = fake_run()
    run.metrics("prune", total_steps=50, every=25)
    before = load_run(run.folder)
    run.append({"kind": "note", "phase": "prune", "step": 50, "text": "hello"})
    assert load_run(run.folder) == before
