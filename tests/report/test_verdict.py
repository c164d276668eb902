"""The first sentence of the page is true, whatever a run has."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from drpruning.report import results_table
from drpruning.report.verdict import run_verdict, runs_verdict, short
from drpruning.runs.records import load_run

MakeRun = Callable[..., Any]


def factors(run: Any, name: str) -> dict[str, float]:
    """By what factor the perplexity of a model is larger than the source's, from the files."""
    model, source = (
        json.loads((run.folder / "evaluation" / f"{model}.json").read_text())["perplexity"]
        for model in (name, "source")
    )
    return {domain: model[domain] / source[domain] for domain in model}


def distance(found: dict[str, float]) -> str:
    worst = max(found, key=lambda name: found[name])
    mean = math.prod(found.values()) ** (1 / len(found))
    return (
        f"{mean:.2f} times the source's perplexity on average and {found[worst]:.2f} times in the "
        f"worst domain, {worst}"
    )


def test_of_a_complete_run(complete_run: Any) -> None:
    assert run_verdict(load_run(complete_run.folder)) == (
        "base-8m, made 2.66 times smaller (3.2M of 8.51M parameters), has "
        f"{distance(factors(complete_run, 'model'))}."
    )


def test_of_a_run_that_only_prunes(fake_run: MakeRun) -> None:
    run = fake_run()
    run.recipe()
    recipe = run.folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("pretrain:\n  steps: 800\n", ""))
    run.metrics("prune", total_steps=40, every=20)
    run.evaluations("source", "pruned")
    text = run_verdict(load_run(run.folder))
    assert "as cut and before any recovery, has" in text
    assert text.endswith(f"{distance(factors(run, 'pruned'))}.")


def test_of_runs_that_are_not_complete(fake_run: MakeRun) -> None:
    run = fake_run()
    run.recipe()
    run.metrics("prune", total_steps=400, every=20, until=120)
    run.evaluations("source")
    text = run_verdict(load_run(run.folder))
    assert text.startswith("Not complete: pruning is at step 120 of 400; at its last evaluation")
    assert "times the source's perplexity on average" in text
    run.metrics("prune", total_steps=400, every=20)
    run.evaluations("source", "pruned")
    text = run_verdict(load_run(run.folder))
    assert text.startswith("Not complete: continued pretraining has not begun;")


def test_of_a_run_without_a_source(fake_run: MakeRun) -> None:
    run = fake_run(domains=["only"])
    run.metrics("pretrain", total_steps=40, every=20)
    run.evaluations("model")
    text = run_verdict(load_run(run.folder))
    value = json.loads((run.folder / "evaluation" / "model.json").read_text())["perplexity"]["only"]
    assert text.endswith(f"trained further, has a perplexity of {value:.2f}.")
    assert "source" not in text


def test_of_a_phase_that_ended_early(fake_run: MakeRun) -> None:
    run = fake_run().everything()
    log = run.folder / "metrics.jsonl"
    log.write_text(log.read_text().replace('"tokens": 3276800}', '"tokens": 1, "stopped": "web"}'))
    assert "continued pretraining ended early at step 800 (web), has" in run_verdict(
        load_run(run.folder)
    )


def test_of_a_plan_and_of_evaluations_alone(fake_run: MakeRun) -> None:
    planned, measured = fake_run("planned"), fake_run("measured")
    planned.plan()
    measured.evaluations("source")
    assert "only the plan is known" in run_verdict(load_run(planned.folder))
    assert run_verdict(load_run(measured.folder)) == (
        "1 model was measured; no training is on record."
    )


def test_of_several_runs(complete_run: Any, constant_run: Any, fake_run: MakeRun) -> None:
    runs = {run.folder.name: run for run in (complete_run, constant_run)}
    records = [load_run(run.folder) for run in runs.values()]
    means = {
        f"recovered ({name})": math.prod(found.values()) ** (1 / len(found))
        for name, found in ((name, factors(run, "model")) for name, run in runs.items())
    }
    best, last = sorted(means, key=lambda name: means[name])
    text = runs_verdict(results_table(records), list(runs))
    assert text.startswith(
        f"Of 2 runs, “{best}” ends best on average, at {means[best]:.2f} times the source's "
        f"perplexity (“{last}”: {means[last]:.2f})"
    )
    other = fake_run("other", ["x", "y"])
    other.evaluations("model")
    table = results_table([records[0], load_run(other.folder)])
    assert runs_verdict(table, ["a", "b"]).startswith("2 runs that cannot be compared.")


@pytest.mark.parametrize(
    ("count", "text"),
    [(12, "12"), (684_192, "684k"), (999_999, "1e+03k"), (8_507_648, "8.51M"), (7e9, "7B")],
)
def test_counts_are_short(count: float, text: str) -> None:
    assert short(count) == text.replace("1e+03k", "1M")
