"""Names of tasks as people write them, and the paper's groups."""

import pytest

from drpruning.common.errors import BadInput
from drpruning.evaluation.squad import answer_f1
from drpruning.evaluation.task_groups import GROUPS, TaskSpec, parse_tasks


def test_groups_and_tasks_are_listed_once_in_their_order() -> None:
    found = parse_tasks(["gsm8k@8, paper-15", "hellaswag@10,piqa"], "--tasks")
    assert [spec.title for spec in found[:3]] == ["gsm8k@8", "piqa@0", "winogrande@0"]
    titles = [spec.title for spec in found]
    assert titles.count("hellaswag@10") == 1
    assert titles[-1] == "piqa", "with the task's own number of examples"
    assert found[-1].metric == "acc"


def test_the_papers_shots() -> None:
    shots = {spec.name: spec.shots for spec in GROUPS["paper-15"]}
    assert len(shots) == 15
    several = {name: count for name, count in shots.items() if count}
    assert several == {
        "nq_open": 5, "triviaqa": 5, "hellaswag": 10, "arc_challenge": 25, "mmlu": 5,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", ",", "piqa@", "piqa@x", "pi qa", "@3", "a@1@2", "paper-15@3"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"--tasks: .* is not the name of a task; write a group"):
        parse_tasks([text], "--tasks")


def test_no_task_at_all_is_refused() -> None:
    with pytest.raises(BadInput, match=r"evaluate\.tasks: names no task"):
        parse_tasks([], "evaluate.tasks")


@pytest.mark.slow
def test_lm_eval_has_every_task_of_the_groups_with_its_metric() -> None:
    pytest.importorskip("lm_eval")
    from drpruning.evaluation.harness import Catalogue

    specs = [spec for group in GROUPS.values() for spec in group]
    catalogue = Catalogue([spec.name for spec in specs], None, "--tasks")
    for spec in specs:
        settings = catalogue.settings(spec.name)
        listed = settings.get("metric_list") or settings["aggregate_metric_list"]
        assert spec.metric in {each["metric"] for each in listed}, spec
    with pytest.raises(BadInput, match="did you mean hellaswag"):
        Catalogue(["helaswag"], None, "--tasks")


def test_answers_are_compared_as_the_official_script_does() -> None:
    assert answer_f1("The Eiffel Tower.", ["eiffel tower", "Paris"]) == 1
    assert answer_f1("in Paris", ["eiffel tower", "Paris"]) == pytest.approx(2 / 3)
    assert answer_f1("", ["Paris"]) == 0
    assert answer_f1("the", ["a"]) == 1
    assert TaskSpec("squad", 0).title == "squad@0"
