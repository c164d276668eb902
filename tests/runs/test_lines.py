"""The lines of metrics.jsonl: their text is what docs/run-folder.md says, and runs of old open."""

import json
import math
import shutil
from pathlib import Path

import pytest

from drpruning.common.errors import BadInput
from drpruning.common.files import dumps
from drpruning.common.unknown import Unknown
from drpruning.recipe.model import DIMENSIONS
from drpruning.report import write_report
from drpruning.runs.lines import (
    End,
    EvalPoint,
    Line,
    SkippedPoint,
    Start,
    StepPoint,
    Warned,
    read_lines,
)
from drpruning.runs.records import load_run
from drpruning.runs.replay import replay_run
from drpruning.scheduling import Decision, Explanation, make_policy

RECORDED = Path(__file__).parent / "recorded_run"
"""Files of a run of version 0.1.0, as the code before these classes wrote them."""
AT = {"phase": "prune", "step": 4, "time": 1.5}
HEAD = '"phase": "prune", "step": 4, "time": 1.5, '
DECISION = Decision(
    ratio={"web": 1.0},
    reference_ratio={"web": 1.0},
    reference_loss=None,
    forecast={"web": 2.0},
    excess={"web": math.nan},
    data={"web": 4.0},
    explanation=Explanation(
        ratio_updated=False,
        unusable={"web": "why"},
        forecast_interval={"web": (1.0, 2.5)},
        no_forecast={},
        rho=0.1,
        divergence=0.0,
        at_floor={"web": True},
    ),
)
STEP = {"loss": 2.0, "gradient_norm": 1.0, "skipped": 0, "learning_rate": 0.1, "tokens": 8}
LINES: list[tuple[Line, str]] = [
    (
        Start(**AT, total_steps=9, global_batch=2, sequence_length=3, parameters=5.0,
              final_parameters=4, versions={"torch": "2"}, commit=None),
        '{"kind": "start", ' + HEAD + '"total_steps": 9, "global_batch": 2, "sequence_length": 3, '
        '"parameters": 5.0, "final_parameters": 4, "versions": {"torch": "2"}, "commit": null}',
    ),
    (
        StepPoint(**AT, **STEP, tokens_per_second=3.0),
        '{"kind": "step", ' + HEAD + '"loss": 2.0, "gradient_norm": 1.0, "skipped": 0, '
        '"learning_rate": 0.1, "tokens": 8, "tokens_per_second": 3.0}',
    ),
    (
        StepPoint(**AT, **STEP | {"loss": math.nan}, tokens_per_second=3.0, lagrangian=math.nan,
                  sparsity={}, target_sparsity={"layer": 0.5}, sparsity_deviation={"layer": 0.0},
                  expected_parameters=7.5),
        '{"kind": "step", ' + HEAD + '"loss": null, "lagrangian": null, "gradient_norm": 1.0, '
        '"skipped": 0, "learning_rate": 0.1, "tokens": 8, "tokens_per_second": 3.0, '
        '"sparsity": {}, "target_sparsity": {"layer": 0.5}, "sparsity_deviation": {"layer": 0.0}, '
        '"expected_parameters": 7.5}',
    ),
    (
        SkippedPoint(**AT, loss=math.inf, gradient_norm=1.0, blocks={"web": [3, 1]}),
        '{"kind": "skip", ' + HEAD + '"loss": null, "gradient_norm": 1.0, '
        '"blocks": {"web": [3, 1]}}',
    ),
    (
        EvalPoint(**AT, loss={"web": math.nan}, **EvalPoint.decided(DECISION),
                  realised_share=Unknown(), epochs={"web": 0.5}, used_up={}, parameters=5.0,
                  evaluation_seconds=0.25, update_seconds=0.5),
        '{"kind": "eval", ' + HEAD + '"loss": {"web": null}, "ratio": {"web": 1.0}, '
        '"reference_ratio": {"web": 1.0}, "reference_loss": null, "forecast": {"web": 2.0}, '
        '"excess": {"web": null}, "data": {"web": 4.0}, "explanation": {"ratio_updated": false, '
        '"unusable": {"web": "why"}, "forecast_interval": {"web": [1.0, 2.5]}, "no_forecast": {}, '
        '"rho": 0.1, "divergence": 0.0, "at_floor": {"web": true}}, "realised_share": null, '
        '"epochs": {"web": 0.5}, "used_up": {}, "parameters": 5.0, "evaluation_seconds": 0.25, '
        '"update_seconds": 0.5}',
    ),
    (
        Warned(**AT, message="careful: é"),
        '{"kind": "warning", ' + HEAD + '"message": "careful: é"}',
    ),
    (
        End(**AT, total_seconds=2.5, tokens=8, stopped="the plans agree"),
        '{"kind": "end", ' + HEAD + '"total_seconds": 2.5, "tokens": 8, '
        '"stopped": "the plans agree"}',
    ),
]  # fmt: skip


@pytest.mark.parametrize(("line", "text"), LINES, ids=lambda part: getattr(part, "kind", ""))
def test_a_line_is_written_as_documented_and_read_back(
    line: Line, text: str, tmp_path: Path
) -> None:
    assert dumps(line.to_json()) == text
    file = tmp_path / "metrics.jsonl"
    file.write_text(text + "\n", encoding="utf-8")
    (read,) = read_lines(file)
    assert type(read) is type(line)
    assert json.loads(dumps(read.to_json())) == json.loads(text)


@pytest.mark.parametrize("policy", ["drpruning", "naive_dro", "sheared", "group_dro", "constant"])
def test_a_policy_leaves_out_what_it_does_not_say(policy: str) -> None:
    settings = {"reference_loss": {"a": 1.0, "b": 1.0}} if policy == "sheared" else {}
    decision = make_policy(policy, {"a": 0.5, "b": 0.5}, 100, 1.0, **settings).update(
        step=0, losses={"a": 2.0, "b": 2.5}
    )
    said = EvalPoint(
        **AT, loss={}, **EvalPoint.decided(decision), realised_share={}, epochs={}, used_up={},
        parameters=1.0, evaluation_seconds=0.0, update_seconds=0.0,
    ).to_json()["explanation"]  # fmt: skip
    limited = ["rho", "radius", "divergence", "floor", "at_floor"]
    expected = {
        "drpruning": ["loss", "reference_origin", "reference_ratio_updated", *limited],
        "naive_dro": ["reference_origin", *limited],
        "sheared": ["reference_origin"],
    }
    assert list(said) == ["ratio_updated", "unusable", "churn", *expected.get(policy, [])]


def test_a_run_of_an_older_version_reads_as_it_was_written() -> None:
    texts = (RECORDED / "metrics.jsonl").read_text().splitlines()
    lines = list(read_lines(RECORDED / "metrics.jsonl"))
    assert {line.kind for line in lines} == {"start", "step", "eval", "warning", "end"}
    for text, line in zip(texts, lines, strict=True):
        again, written = json.loads(dumps(line.to_json())), json.loads(text)
        assert again == written
        assert list(again) == list(written)
        assert list(again.get("explanation", ())) == list(written.get("explanation", ()))


def test_report_and_replay_open_a_run_of_an_older_version(tmp_path: Path) -> None:
    folder = shutil.copytree(RECORDED, tmp_path / "run")
    run = load_run(folder)
    assert list(run.phases) == ["prune", "pretrain"]
    assert [evaluation.name for evaluation in run.evaluations.values()] == [
        "source", "pruned", "model",
    ]  # fmt: skip
    assert run.plan is not None
    page = write_report([folder]).read_text(encoding="utf-8")
    for ident in ("run1-prune-decision", "run1-pretrain-counts", "run1-mask-convergence"):
        assert f'id="{ident}"' in page
    defaults_of_then = ["reference=paper", "min_quality=0.5"]
    assert all(" --set ".join(["", *defaults_of_then])[1:] in n for n in replay_run(folder).notes)
    replay = replay_run(folder, settings=defaults_of_then)
    pruning, pretraining = replay.curves()
    assert pruning.identical
    # A smallest loss that pruning hands over now stands in only until this phase has its own.
    assert all(abs(row.difference) < 0.02 for row in pretraining.rows())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"kind": "eval", "phase": "prune", "step": -1}', "'step'"),
        ('{"kind": "eval", "phase": "prune", "step": 9223372036854775808}', "'step'"),
        ('{"kind": "note", "phase": "prune"}', "'step'"),
        ('{"kind": "warning", "phase": "prune", "step": 1}', "'message'"),
        ('{"kind": "end", "phase": "prune", "step": 1, "stopped": 5}', "'stopped'"),
        ('{"kind": "start", "phase": "prune", "step": 0, "total_steps": null}', "'total_steps'"),
        ('["kind"]', "must be an object"),
        ("3", "must be"),
    ],
)
def test_what_a_line_must_have_is_named(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(text + "\n")
    with pytest.raises(BadInput, match=r"metrics\.jsonl, line 1: ") as caught:
        list(read_lines(tmp_path / "metrics.jsonl"))
    assert words in str(caught.value)


def test_a_log_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(BadInput, match=r"metrics\.jsonl cannot be read: Is a directory"):
        list(read_lines(tmp_path / "metrics.jsonl"))


def test_a_recipe_and_a_plan_name_the_same_dimensions() -> None:
    from drpruning.pruning.shapes import PRUNABLE

    assert PRUNABLE == DIMENSIONS
