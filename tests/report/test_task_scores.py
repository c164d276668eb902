"""Scores on tasks stand side by side, with an average over what all models have."""

from collections.abc import Callable
from typing import Any

import pytest
from parsed_page import Page, report

from drpruning.common.errors import BadInput
from drpruning.models.card import RESULTS_BEGIN, RESULTS_END
from drpruning.report.card_results import write_card_results
from drpruning.runs.folder import RunFolder

MakeRun = Callable[..., Any]


@pytest.fixture
def run(fake_run: MakeRun) -> Any:
    made = fake_run("one", ["web", "code"])
    made.recipe()
    made.evaluations()
    for number, model in enumerate(("source", "pruned", "model")):
        made.score(model, "piqa", 0.7 - 0.1 * number)
        made.score(model, "hellaswag", 0.5 - 0.1 * number, shots=10)
        made.score(model, "wikitext", 20.0 + number, higher_is_better=False, error=float("nan"))
    return made


def rows(page: Page) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in page.cells("tasks-table")}


def test_tasks_stand_beside_the_models_of_a_run(run: Any) -> None:
    found = rows(report(run))
    assert found == {
        "Task": ["source", "as cut", "recovered"],
        "hellaswag, 10 shots": ["50.0 ±2.0", "40.0 ±2.0", "30.0 ±2.0"],
        "piqa": ["70.0 ±2.0", "60.0 ±2.0", "50.0 ±2.0"],
        "wikitext": ["20.000", "21.000", "22.000"],
        "average of 2": ["60.0", "50.0", "40.0"],
    }


def test_an_average_is_only_over_tasks_that_all_models_have(run: Any) -> None:
    run.score("model", "sciq", 0.9)
    run.score("elsewhere", "piqa", 0.8)
    found = rows(report(run))
    assert found["Task"] == ["source", "as cut", "recovered", "elsewhere"]
    assert found["sciq"] == ["–", "–", "90.0 ±2.0", "–"]
    assert found["piqa"][-1] == "80.0 ±2.0"
    assert not any(name.startswith("average") for name in found)


def test_prompts_for_significance_are_left_out_and_a_limit_is_named(run: Any) -> None:
    run.score("model", "boolq", 0.1, prompt=2)
    run.score("model", "piqa", 0.2, limit=50)
    found = rows(report(run))
    assert "boolq" not in found
    assert found["piqa, first 50 documents"] == ["–", "–", "20.0 ±2.0"]
    assert found["piqa"][-1] == "50.0 ±2.0"


def test_the_best_of_several_runs_is_bold_and_their_source_is_there_once(
    run: Any, fake_run: MakeRun
) -> None:
    other = fake_run("other", ["web", "code"], policy="constant")
    other.recipe()
    other.evaluations()
    for task, shots in (("piqa", 0), ("hellaswag", 10)):
        other.score("source", task, 0.9, fingerprint="one-source", shots=shots)
        other.score("model", task, 0.45, shots=shots)
    other.score("model", "wikitext", 19.0, higher_is_better=False)
    page = report(run, other)
    found = rows(page)
    assert found["Task"] == ["source", "as cut (one)", "recovered (one)", "recovered (other)"]
    table = page.text.split('id="tasks-table"')[1].split("</table>")[0]
    bold = [cell.split("<")[0].strip() for cell in table.split('<td class="best">')[1:]]
    assert bold == ["50.0", "45.0", "19.000", "45.0"]


def test_the_card_has_the_scores_too(run: Any) -> None:
    folder = run.folder / "pruned"
    folder.mkdir()
    (folder / "README.md").write_text(f"{RESULTS_BEGIN}\nnothing\n{RESULTS_END}\n")
    write_card_results(run.folder)
    card = (folder / "README.md").read_text()
    assert "| task | source | as cut |\n" in card
    assert "| piqa | 70.0 ±2.0 | 60.0 ±2.0 |\n" in card
    assert "| average of 2 | 60.0 | 50.0 |\n" in card


def test_a_damaged_score_is_named(run: Any) -> None:
    file = next(RunFolder(run.folder).task_results.iterdir())
    file.write_text("{")
    with pytest.raises(BadInput, match=file.name):
        report(run)
