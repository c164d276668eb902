"""Wrong tasks, prompts and places of scores, refused before torch and lm-eval are imported."""

from helpers.damaged_places import Row, field, file, nothing

SCORES = ("--output", "scores")


def compare(*arguments: str) -> tuple[str, ...]:
    return ("compare", *arguments, *SCORES)


REFUSED_TASKS = [
    Row("tasks-with-a-space", field("evaluate", {"tasks": ["pi qa"]}),
        ("evaluate.tasks.0: write the name of a task", "hellaswag@10", "not 'pi qa'")),
    Row("tasks-of-no-number", field("evaluate", {"tasks": ["piqa@few"]}), ("evaluate.tasks.0",)),
    Row("tasks-of-one-text", field("evaluate", {"tasks": "piqa"}), ("evaluate.tasks", "list")),
    Row("tasks-limit-of-nothing", field("evaluate", {"limit": 0}), ("evaluate.limit",)),
    Row("tasks-path-of-no-variable", field("evaluate", {"task_path": "$NOT_SET_HERE"}),
        ("evaluate.task_path: the environment variable NOT_SET_HERE is not set",)),
    Row("evaluate-no-task", nothing, ("--tasks: '' is not the name of a task", "paper-15"),
        ("evaluate", "model", "--tasks", "", *SCORES)),
    Row("evaluate-shots-of-a-group", nothing, ("--tasks: 'paper-15@3' is not the name of a task",),
        ("evaluate", "model", "--tasks", "paper-15@3", *SCORES)),
    Row("evaluate-tasks-without-a-place", nothing,
        ("model: name a folder for its scores with --output FOLDER, or with --data RUN",),
        ("evaluate", "model", "--tasks", "piqa")),
    Row("evaluate-scores-in-a-file", file("scores", "x"), ("--output: scores is a file",),
        ("evaluate", "model", "--tasks", "piqa", *SCORES)),
    Row("evaluate-tasks-of-no-model", nothing, ("gone/here/now: neither a run folder",),
        ("evaluate", "gone/here/now", "--tasks", "piqa", *SCORES)),
    Row("compare-one", nothing, ("compare: name two models or runs, or several pairs",),
        compare("model", "--tasks", "piqa")),
    Row("compare-itself", nothing, ("compare: a model is named twice",),
        compare("model", "./model", "--tasks", "piqa")),
    Row("compare-without-prompts", nothing,
        ("--tasks: there are no prompts for gsm8k, only for piqa,", "--prompts FILE"),
        compare("model", "other", "--tasks", "piqa,gsm8k")),
    Row("compare-no-prompts-file", nothing, ("--prompts none.yaml: No such file",),
        compare("model", "other", "--tasks", "piqa", "--prompts", "none.yaml")),
    Row("compare-wrong-prompts", file("prompts.yaml", "kinds: {plain: []}"),
        ("--prompts prompts.yaml: kinds.plain", "correct it"),
        compare("model", "other", "--tasks", "piqa", "--prompts", "prompts.yaml")),
]  # fmt: skip
