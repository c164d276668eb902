"""SQuAD 1.1 as a task of lm-eval: the answer that a model writes after title, text and question.

lm-eval's own `squadv2` has the same prompt, but scores with a program that it downloads and runs.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def answer_f1(answer: str, references: Sequence[str]) -> float:
    """The largest F1 of an answer's words against any of the references, from 0 to 1.

    Words are compared as the official script does: in lower case, without punctuation and articles.
    """
    return max(_f1(_words(answer), _words(reference)) for reference in references)


def _f1(words: list[str], wanted: list[str]) -> float:
    if not words or not wanted:
        return float(words == wanted)
    common = (Counter(words) & Counter(wanted)).total()
    return 2 * common / (len(words) + len(wanted))


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _scores(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    return {"f1": answer_f1(results[0], document["answers"]["text"])}


SQUAD: dict[str, Any] = {
    "task": "squad",
    "dataset_path": "rajpurkar/squad",
    "output_type": "generate_until",
    "training_split": "train",
    "validation_split": "validation",
    "doc_to_text": (
        "Title: {{title | replace('_', ' ')}}\n\nBackground: {{context}}\n\n"
        "Question: {{question}}\n\nAnswer:"
    ),
    "doc_to_target": "{{answers.text[0]}}",
    "process_results": _scores,
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 48},
    "metric_list": [{"metric": "f1", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}
"""The settings of the task."""
