"""Five wordings of every task of the paper, and files with more."""

from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from drpruning.common.errors import BadInput
from drpruning.evaluation.prompts import load_prompts, package_prompts
from drpruning.evaluation.task_groups import GROUPS

CAPITAL = {"question": "What is the capital of France?"}
DOCUMENTS: dict[str, dict[str, Any]] = {
    "piqa": {"goal": "Open a jar"},
    "arc_easy": CAPITAL,
    "arc_challenge": CAPITAL,
    "truthfulqa_mc1": CAPITAL,
    "truthfulqa_mc2": CAPITAL,
    "nq_open": {"question": "who wrote it"},
    "triviaqa": CAPITAL,
    "hellaswag": {"query": "Cooking: A man"},
    "lambada_openai": {"text": "They went home"},
    "winogrande": {
        "sentence": "The cup is on the table because _ is flat.",
        "option1": "the cup",
        "option2": "the table",
    },
    "wsc273": {"text": "Tom saw that he won", "pronoun_loc": 13, "options": ["Tom", "Bob"]},
    "mmlu": {"question": " 1 + 1? ", "choices": ["1", "2", "3", "4"]},
    "logiqa": {"context": "It rains.", "question": "So?", "options": ["a b", "c", "d", "e"]},
    "squad": {"title": "New_York", "context": "A city.", "question": "What is it?"},
    "boolq": {"passage": "Iron -- Iron is a metal.", "question": "is iron a metal"},
    "sciq": {"support": " Cells divide. ", "question": "What divides?"},
    "wsc": {
        "text": "Tom told Bob that he won.",
        "span1_text": "Tom",
        "span2_text": "he",
        "span2_index": 4,
    },
}


def rendered(task: str, number: int) -> str:
    (template,) = package_prompts().settings(task, number).values()
    environment = jinja2.Environment(  # noqa: S701 - as lm-eval's own
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    return environment.from_string(template).render(DOCUMENTS[task])


def test_every_task_of_the_paper_has_five_prompts() -> None:
    prompts = package_prompts()
    assert {spec.name for spec in GROUPS["paper-15"]} <= prompts.tasks.keys() == DOCUMENTS.keys()
    assert {len(templates) for templates in prompts.kinds.values()} == {5}
    assert len(prompts.kinds) == 5


@pytest.mark.parametrize("task", DOCUMENTS)
def test_prompts_of_a_task_differ_and_hold_the_document(task: str) -> None:
    texts = [rendered(task, number) for number in range(5)]
    assert len(set(texts)) == 5
    for text in texts:
        assert "{" not in text.removeprefix("{{")
        assert text == text.strip(), "lm-eval adds the space before an answer"


def test_a_prompt_of_each_shape() -> None:
    assert rendered("piqa", 0) == "Question: Open a jar\nAnswer:"
    assert rendered("lambada_openai", 1) == "Text: They went"
    assert rendered("winogrande", 1) == (
        "['Text: The cup is on the table because the cup', "
        "'Text: The cup is on the table because the table']"
    )
    assert rendered("mmlu", 0) == "1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    assert rendered("squad", 0).startswith("Title: New York\n\nBackground: A city.\n\nQuestion:")
    assert rendered("boolq", 1) == "Iron\n\nIron is a metal.\n\nQ: is iron a metal?\nA:"
    assert (
        rendered("wsc", 1) == 'Tom told Bob that *he* won.\n\nDoes "he" stand for "Tom"?\nAnswer:'
    )


def written(tmp_path: Path, content: Any) -> Path:
    file = tmp_path / "prompts.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_a_file_adds_kinds_and_tasks(tmp_path: Path) -> None:
    own = {
        "kinds": {"plain": ["{text}", "so: {text}"]},
        "tasks": {"mine": {"kind": "plain", "fields": {"text": "body"}}},
    }
    prompts = load_prompts(written(tmp_path, own))
    assert prompts.count("mine") == 2
    assert prompts.settings("mine", 1) == {"doc_to_text": "so: {{ body }}"}
    assert prompts.count("piqa") == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a mapping with kinds and tasks"),
        ({"sorts": {}}, "sorts"),
        ({"kinds": {"plain": []}}, "kinds.plain"),
        ({"kinds": {"plain": ["{{ 1 }}"]}}, "kinds.plain.0"),
        ({"kinds": {"plain": 3}}, "kinds.plain"),
        ({"kinds": 3}, "kinds"),
        ({"tasks": {"mine": {"kind": "nothing"}}}, "there is no kind 'nothing'"),
        ({"tasks": {"mine": {"kind": "reading", "fields": {}}}}, "background is missing"),
        (
            {"tasks": {"mine": {"kind": "reading", "contexts": ["a", "b"]}}},
            "does not end with {text}",
        ),
    ],
)
def test_a_wrong_file_is_refused_by_its_place(tmp_path: Path, content: Any, message: str) -> None:
    file = written(tmp_path, content)
    with pytest.raises(BadInput) as refused:
        load_prompts(file)
    assert str(refused.value).startswith(f"--prompts {file}: ")
    assert message in str(refused.value)
