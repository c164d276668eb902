"""Which tasks there are by one name: the paper's fifteen and its multilingual ones."""

from collections.abc import Iterable
from dataclasses import dataclass

from drpruning.common.errors import BadInput, shown
from drpruning.recipe.evaluate import TASK


@dataclass(frozen=True)
class TaskSpec:
    """A task as it is to be run.

    Attributes:
        name: As lm-eval names it.
        shots: Examples in the prompt; None: as the task itself says, else none.
        metric: What is reported; None: the first of `PREFERRED_METRICS` that the task has.
    """

    name: str
    shots: int | None = None
    metric: str | None = None

    @property
    def title(self) -> str:
        """NAME, or NAME@SHOTS."""
        return self.name if self.shots is None else f"{self.name}@{self.shots}"


PREFERRED_METRICS = ("acc_norm", "acc", "exact_match", "f1")
"""Metrics of tasks that no group has, best first."""

# Table 3 with the shots of section 4.1. Accuracies are of the likelihood per character where the
# answers differ in length and the literature does so (ARC-C, HellaSwag), plain everywhere else.
_PAPER_15 = (
    TaskSpec("piqa", 0, "acc"),
    TaskSpec("winogrande", 0, "acc"),
    TaskSpec("arc_easy", 0, "acc"),
    TaskSpec("squad", 0, "f1"),
    TaskSpec("boolq", 0, "acc"),
    TaskSpec("truthfulqa_mc2", 0, "acc"),
    TaskSpec("nq_open", 5, "exact_match"),
    TaskSpec("triviaqa", 5, "exact_match"),
    TaskSpec("lambada_openai", 0, "acc"),
    TaskSpec("logiqa", 0, "acc"),
    TaskSpec("sciq", 0, "acc"),
    TaskSpec("wsc", 0, "acc"),
    TaskSpec("hellaswag", 10, "acc_norm"),
    TaskSpec("arc_challenge", 25, "acc_norm"),
    TaskSpec("mmlu", 5, "acc"),
)

# Of en ru zh ja ar tr ko th the languages that each benchmark has.
_LANGUAGES = {
    "xnli": ("en", "ru", "zh", "ar", "tr", "th"),
    "xwinograd": ("en", "ru", "zh", "jp"),
    "xstorycloze": ("en", "ru", "zh", "ar"),
    "paws": ("en", "zh", "ja", "ko"),
}
_PAPER_MULTILINGUAL = tuple(
    TaskSpec(f"{benchmark}_{language}", 0, "acc")
    for benchmark, languages in _LANGUAGES.items()
    for language in languages
)

GROUPS = {"paper-15": _PAPER_15, "paper-multilingual": _PAPER_MULTILINGUAL}
"""Name of a group -> its tasks."""
_METRICS = {spec.name: spec.metric for group in GROUPS.values() for spec in group}


def parse_tasks(texts: Iterable[str], field: str) -> list[TaskSpec]:
    """The tasks that names and groups stand for, each once, in their order.

    Args:
        texts: NAME, NAME@SHOTS, or a group; also several with commas between them.
        field: What they were given in, for the message.

    Raises:
        BadInput: One is not written so, or there are none.
    """
    found: dict[str, TaskSpec] = {}
    for text in (part.strip() for each in texts for part in each.split(",")):
        name, _, shots = text.partition("@")
        if not TASK.fullmatch(text) or (shots and name in GROUPS):
            raise BadInput(
                f"{field}: {shown(text)} is not the name of a task; write a group "
                f"({', '.join(GROUPS)}), or a task of lm-eval, with @N for N examples in the prompt"
            )
        spec = TaskSpec(name, int(shots) if shots else None, _METRICS.get(name))
        for each in GROUPS.get(name, (spec,)):
            found.setdefault(each.title, each)
    if not found:
        raise BadInput(f"{field}: names no task; write a group ({', '.join(GROUPS)}) or a task")
    return list(found.values())
