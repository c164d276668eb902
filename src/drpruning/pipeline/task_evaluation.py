"""Tasks of lm-eval on the models of runs and on models from elsewhere, each score measured once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drpruning.common.console import Reporter
from drpruning.common.errors import BadInput, EvaluationIncomplete
from drpruning.data.document_format import DocumentFormat, markers_of
from drpruning.evaluation.prompts import Prompts
from drpruning.evaluation.task_groups import TaskSpec, parse_tasks
from drpruning.models.fingerprint import model_fingerprint, model_folder
from drpruning.models.inspect import SOURCE_FIELD
from drpruning.pipeline.prepared import document_format
from drpruning.recipe import Evaluate, Recipe, Training
from drpruning.report.task_table import task_table
from drpruning.runs.folder import SOURCE, RunFolder
from drpruning.runs.task_results import TaskKey, TaskResult, read_task_result, write_task_result

if TYPE_CHECKING:
    from accelerate import Accelerator

    from drpruning.evaluation.harness import Catalogue, LanguageModel

RECIPE_FIELD, OPTION = "evaluate.tasks", "--tasks"


@dataclass(frozen=True, kw_only=True)
class TaskModel:
    """A model that is to be measured on tasks.

    Attributes:
        label: Its name in tables.
        path: Its folder, or its name on the Hub.
        field: What named it, for messages.
        tokenizer: Folder or Hub name of its tokenizer.
        folder: Where its scores are kept.
        documents: How texts began in training; None for a model from elsewhere.
        training: Gives precision and the number of texts per forward pass.
    """

    label: str
    path: str
    field: str
    tokenizer: str
    folder: Path
    documents: DocumentFormat | None
    training: Training


@dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """The tasks that models are measured on.

    Attributes:
        specs: The tasks.
        limit: Documents of each at most; None: all.
        task_path: A folder of the user's own tasks.
        prompts: Templates under which each task is run; None: the task's own prompt.
        field: What named the tasks, for messages.
    """

    specs: list[TaskSpec]
    limit: int | None = None
    task_path: Path | None = None
    prompts: Prompts | None = None
    field: str = OPTION

    @classmethod
    def of_recipe(cls, evaluate: Evaluate) -> "TaskPlan | None":
        """What a recipe asks for; None for nothing.

        Raises:
            BadInput: lm-eval is not installed, or has no such task.
        """
        if not evaluate.tasks:
            return None
        path = None if evaluate.task_path is None else Path(evaluate.task_path)
        specs = parse_tasks(evaluate.tasks, RECIPE_FIELD)
        plan = cls(specs=specs, limit=evaluate.limit, task_path=path, field=RECIPE_FIELD)
        plan.catalogue  # noqa: B018 - finds the tasks, before days of training
        return plan

    @property
    def items(self) -> list["TaskItem"]:
        """Every task under every prompt."""
        if self.prompts is None:
            return [TaskItem(spec) for spec in self.specs]
        return [
            TaskItem(spec, number + 1, self.prompts.settings(spec.name, number))
            for spec in self.specs
            for number in range(self.prompts.count(spec.name))
        ]

    @cached_property
    def catalogue(self) -> "Catalogue":
        """The tasks as lm-eval has them, without their data.

        Raises:
            BadInput: lm-eval is not installed, or has no such task.
        """
        if find_spec("lm_eval") is None:
            raise BadInput(
                f"{self.field}: tasks are run by lm-eval, which is not installed; "
                "pip install 'drpruning[eval]'"
            )
        from drpruning.evaluation.harness import Catalogue

        return Catalogue([spec.name for spec in self.specs], self.task_path, self.field)


@dataclass(frozen=True)
class TaskItem:
    """A task under one prompt.

    Attributes:
        spec: The task.
        prompt: Number of the prompt, from 1 on; None: the task's own.
        changes: Settings of the task that the prompt replaces.
    """

    spec: TaskSpec
    prompt: int | None = None
    changes: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """NAME, NAME@SHOTS, and with a prompt its number."""
        return self.spec.title + ("" if self.prompt is None else f", prompt {self.prompt}")


@dataclass
class TaskOutcome:
    """What was measured.

    Attributes:
        results: Label of the model -> title of the task -> result; without what failed.
        failures: Title of the task -> why it could not be run.
    """

    results: dict[str, dict[str, TaskResult]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def run_models(
    recipe: Recipe, models: Mapping[str, str], files: RunFolder, prefix: str = ""
) -> list[TaskModel]:
    """The models of a run.

    Args:
        recipe: Of the run.
        models: Name -> folder or Hub name.
        files: The run folder.
        prefix: Of the models' labels.
    """
    tokenizers = {SOURCE: recipe.model.tokenizer_source}
    return [
        TaskModel(
            label=prefix + name,
            path=path,
            field=SOURCE_FIELD,
            tokenizer=tokenizers.get(name, path),
            folder=files.task_results,
            documents=document_format(recipe),
            training=recipe.training,
        )
        for name, path in models.items()
    ]


def measure_tasks(
    models: Sequence[TaskModel],
    plan: TaskPlan,
    accelerator: "Accelerator",
    reporter: Reporter,
) -> TaskOutcome:
    """Measure models on tasks, but for the scores that are known.

    The first rank measures, with a complete model on its device; the others wait after each task.

    Args:
        models: The models, of different labels.
        plan: The tasks.
        accelerator: Gives the device, and which rank this is.
        reporter: Shows progress.

    Raises:
        BadInput: lm-eval is not installed, has no such task, or a model cannot be loaded.
    """
    outcome = TaskOutcome()
    measuring = None
    if accelerator.is_main_process:
        with reporter.status("loading lm-eval"):
            plan.catalogue  # noqa: B018 - takes seconds
        measuring = _Measuring(plan, accelerator, reporter, models, outcome)
    for model in models:
        if measuring is not None:
            measuring.begin(model)
        for item in plan.items:
            if measuring is not None:
                measuring.measure(item)
            accelerator.wait_for_everyone()
    return outcome


def show_tasks(
    models: Sequence[TaskModel], plan: TaskPlan, accelerator: "Accelerator", reporter: Reporter
) -> TaskOutcome:
    """Measure models on tasks and print the table; see `measure_tasks`."""
    outcome = measure_tasks(models, plan, accelerator, reporter)
    reporter.console.print(task_table(outcome.results))
    return outcome


class _Measuring:
    """Models one after the other; each is loaded when the first score is not known."""

    def __init__(
        self,
        plan: TaskPlan,
        accelerator: "Accelerator",
        reporter: Reporter,
        models: Iterable[TaskModel],
        outcome: TaskOutcome,
    ):
        self._plan, self._catalogue = plan, plan.catalogue
        self._accelerator, self._reporter = accelerator, reporter
        self._folders = list(dict.fromkeys(model.folder for model in models))
        self._outcome = outcome
        self._fingerprints: dict[str, str] = {}
        self._model: TaskModel
        self._loaded: LanguageModel | None
        self._tokenizer: Any

    def begin(self, model: TaskModel) -> None:
        """Turn to the next model."""
        from drpruning.data.tokenization import load_tokenizer
        from drpruning.evaluation.harness import beginning_of_text

        self._model, self._loaded = model, None
        self._outcome.results[model.label] = {}
        self._tokenizer = load_tokenizer(model.tokenizer)
        found = markers_of(self._tokenizer)
        self._bos, self._before = beginning_of_text(found, model.documents, model.tokenizer)
        if model.path not in self._fingerprints:
            if (folder := model_folder(model.path, model.field)) is None:
                self._load()  # from the Hub to its cache
                folder = model_folder(model.path, model.field)
            assert folder is not None  # noqa: S101 - it has just been loaded from there
            with self._reporter.status(f"reading {model.path}"):
                self._fingerprints[model.path] = model_fingerprint(folder, model.field)

    def measure(self, item: TaskItem) -> None:
        """Measure a task, unless its score is known or it has failed before."""
        if item.spec.title in self._outcome.failures:
            return
        model, known = self._model, None
        key = self._key(item)
        for folder in dict.fromkeys((model.folder, *self._folders)):
            known = known or read_task_result(folder, key)
        known = known or self._measured(item, key)
        if known is not None:
            self._outcome.results[model.label][item.title] = known
            if not (model.folder / key.file_name).is_file():
                write_task_result(model.folder, known)

    def _key(self, item: TaskItem) -> TaskKey:
        from drpruning.evaluation.harness import VERSION

        return TaskKey(
            fingerprint=self._fingerprints[self._model.path],
            task=item.spec.name,
            shots=item.spec.shots,
            settings=self._catalogue.settings_digest(item.spec.name, item.changes),
            limit=self._plan.limit,
            bos=None if self._bos is None else self._bos.token,
            precision=self._model.training.precision,
            lm_eval=VERSION,
        )

    def _measured(self, item: TaskItem, key: TaskKey) -> TaskResult | None:
        from drpruning.evaluation.harness import TaskFailed, run_task

        model = self._model
        loaded = self._loaded or self._load()
        self._reporter.line(f"{model.label}: {item.title}")
        try:
            score = run_task(loaded, self._catalogue, item.spec, self._plan.limit, item.changes)
        except TaskFailed as failure:
            self._outcome.failures[item.spec.title] = str(failure)
            self._reporter.warn(f"{item.spec.title}: {failure}")
            return None
        return TaskResult(
            model=model.label, path=model.path, prompt=item.prompt, key=key, result=score
        )

    def _load(self) -> "LanguageModel":
        from drpruning.evaluation.harness import LanguageModel
        from drpruning.models.loading import load_model

        model = self._model
        with self._reporter.status(f"loading {model.path}"):
            network = load_model(model.path, model.field)
            network.to(self._accelerator.device).eval()
        self._loaded = LanguageModel(
            network,
            self._tokenizer,
            bos=self._bos,
            before=self._before,
            precision=model.training.precision,
            batch_size=model.training.micro_batch,
        )
        return self._loaded


def complain_of_failures(failures: Mapping[str, str]) -> None:
    """End a command after everything else was done.

    Args:
        failures: Title of a task -> why it could not be run, which was said when it failed.

    Raises:
        EvaluationIncomplete: There are some.
    """
    if failures:
        raise EvaluationIncomplete(
            f"{len(failures)} {'task' if len(failures) == 1 else 'tasks'} could not be run "
            f"({', '.join(failures)}); the scores of the others are kept, and the same command "
            "tries these again"
        )
