"""A run folder and its stages: prepare -> prune -> pretrain -> evaluate -> report.

A stage that has a result is not run again; one that was interrupted is resumed.
"""

import os
import platform
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from drpruning.common.console import Reporter
from drpruning.common.errors import BadInput
from drpruning.common.files import atomic_write, folder_lock
from drpruning.data import InexactBytesError, PreparedData, TokenBytes, prepare
from drpruning.models.inspect import SOURCE_FIELD
from drpruning.pipeline.devices import start_accelerator
from drpruning.pipeline.domain_plans import plan_domains, repetition_warnings
from drpruning.pipeline.measurement import ModelToMeasure, measure_model, read_token_bytes
from drpruning.pipeline.preflight import RunPlan, check_results, plan_run
from drpruning.pipeline.prepared import check_made_from, document_format
from drpruning.pipeline.reference_losses import (
    measure_reference_losses,
    original_model,
    reference_losses_table,
)
from drpruning.pipeline.task_evaluation import TaskPlan, run_models, show_tasks
from drpruning.pipeline.teachers import check_teacher_memory, check_teacher_tokenizers
from drpruning.recipe import Prune, Recipe, ReferenceModels
from drpruning.report import render_table_text, results_table, write_report
from drpruning.report.card_results import write_card_results
from drpruning.report.live_view import OwnRunView
from drpruning.report.table import fitting_models
from drpruning.runs.folder import (
    MODEL,
    SOURCE,
    RunFolder,
    finished_phases,
    relocated,
    rollback_on_error,
    saved_recipe,
)
from drpruning.runs.provenance import note_session
from drpruning.runs.records import Evaluation, load_evaluation, load_run
from drpruning.runs.reference_losses import ReferenceLosses

if TYPE_CHECKING:
    from accelerate import Accelerator

STAGES = ("prepare", "prune", "pretrain", "evaluate", "report")


@dataclass
class Run:
    """A recipe, its folder, and the stages that lead from one to the results in the other."""

    recipe: Recipe
    plain: bool = False  # print lines on a terminal too, in place of a live view

    def __post_init__(self) -> None:
        self._tasks: TaskPlan | None = None
        self.failed_tasks: dict[str, str] = {}  # task -> why it could not be run
        if self.recipe.model.targets is not None:
            one = next(iter(self.recipe.model.targets))
            raise BadInput(
                f"model.targets: each target has a run of its own; name one, such as "
                f"{self.folder / one}"
            )

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """The run in a folder, wherever the folder is now.

        Raises:
            BadInput: There is no recipe.yaml in it.
        """
        recipe = saved_recipe(folder)
        if recipe is None:
            raise BadInput(f"{folder}: no run here (no {RunFolder(folder).recipe.name})")
        return cls(relocated(recipe, folder))

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.recipe.output)

    @property
    def files(self) -> RunFolder:
        """The paths in the run folder."""
        return RunFolder(self.folder)

    @cached_property
    def plan(self) -> RunPlan:
        """What was found about the recipe; every stage takes it from here."""
        return plan_run(self.recipe)

    @cached_property
    def accelerator(self) -> "Accelerator":
        """Devices and ranks, as `torchrun` or `accelerate launch` set them up."""
        return start_accelerator(self.reporter, self.recipe.training)

    @cached_property
    def reporter(self) -> Reporter:
        """The terminal, silent on all ranks but the first."""
        silent = int(os.environ.get("RANK", "0")) != 0
        return Reporter(silent=silent, plain=self.plain, view=OwnRunView(self.folder))

    @contextmanager
    def session(self, command: str | None) -> Iterator["Run"]:
        """Check everything that can be checked, then lock the folder while the block runs.

        Args:
            command: What was started, for sessions.jsonl; None: it does not begin the run, whose
                recipe may still change.

        Raises:
            BadInput: Something in the recipe cannot work (every problem found is named), or another
                process works in the folder.
        """
        if command is not None and self.plan.guessed_shares and not self.plan.problems:
            self._prepare_first()
        if self.plan.problems:
            raise BadInput("\n".join(self.plan.problems))
        self.recipe = self.plan.recipe
        if self.recipe.model.source is None:
            raise BadInput("model.source: missing; a shape alone can be planned, not trained")
        for warning in self.plan.warnings:
            self.reporter.warn(warning)
        self._check_loadable()
        self.accelerator.wait_for_everyone()  # every rank has checked the folder; now one writes
        if not self.accelerator.is_main_process:
            self.accelerator.wait_for_everyone()
            self._check_shared_filesystem()
            yield self
            return
        with rollback_on_error(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                if command is not None:
                    # In this order: without a session the recipe would not be the run's own.
                    note_session(self.files, command, self.accelerator.num_processes)
                    if not self.plan.is_finished:
                        atomic_write(self.files.recipe, self.recipe.to_yaml())
                self.accelerator.wait_for_everyone()
                yield self

    def _prepare_first(self) -> None:
        """Prepare the data, which some shares follow from, and plan again with these shares."""
        first = Run(self.recipe, self.plain)
        first.plan = replace(self.plan, warnings=[])  # they are said once, with the exact shares
        with first.session(None):
            data = first.data
        self.plan = plan_run(self.recipe)
        self.data = data

    def _check_loadable(self) -> None:
        """Find out before the data are prepared, which may take hours."""
        model = self.recipe.model
        if model.shape is None or (Path(str(model.source)) / "config.json").is_file():
            with self.reporter.status("loading PyTorch and Transformers"):
                from drpruning.models.loading import check_loadable, quiet_libraries

                quiet_libraries()
                check_loadable(model.reference, SOURCE_FIELD)

    def _check_shared_filesystem(self) -> None:
        """A rank on another host must see what the first one has made."""
        # Listing a folder makes a network file system ask for news; asking for one name may not.
        folder = self.folder.resolve()
        places = ((folder.parent, folder), (folder, RunFolder(folder).lock))
        if not all(place.is_dir() and path in place.iterdir() for place, path in places):
            raise BadInput(
                f"output: rank {self.accelerator.process_index} on {platform.node()} does not see "
                f"{self.folder}, where the first rank works; name a folder on a file system that "
                "all hosts share"
            )

    def _lock(self) -> AbstractContextManager[None]:
        return folder_lock(self.folder, f"output: another process is working in {self.folder}")

    def run(self, stages: Collection[str]) -> None:
        """Run these stages in their order.

        Raises:
            BadInput: The ranks cannot share the batch of a phase, its teachers do not fit, or there
                is no such task.
        """
        if "evaluate" in stages:
            self._tasks = TaskPlan.of_recipe(self.recipe.evaluate)
        finished = finished_phases(self.recipe, self.folder)
        for phase in stages:
            if phase in self.recipe.phases and phase not in finished:
                self._check_batch_split(phase)
                student, teachers = self.plan.student(phase), self.plan.teachers.get(phase, [])
                check_teacher_memory(self.recipe, phase, student, teachers, self.accelerator)
        actions: dict[str, Callable[[], None]] = {
            "prepare": self._report_data,
            "prune": self.prune,
            "pretrain": self.pretrain,
            "evaluate": self._evaluate,
            "report": self.report,
        }
        for stage in STAGES:
            if stage in stages:
                actions[stage]()

    def _check_batch_split(self, phase: str) -> None:
        from drpruning.training.optimizer import micro_batches

        if (settings := self.recipe.phases.get(phase)) is not None:
            parts = settings.mask_samples if isinstance(settings, Prune) else 1
            ranks = self.accelerator.num_processes
            try:
                micro_batches(settings.global_batch, 1, parts, ranks=ranks)
            except BadInput as error:
                raise BadInput(f"{phase}.{error}") from None

    # Stages.

    @cached_property
    def data(self) -> PreparedData:
        """The tokenized blocks; what is not prepared yet is prepared now."""
        folder = self.recipe.prepared_folder
        if self.accelerator.is_main_process:
            self._prepare(folder)
        self.accelerator.wait_for_everyone()
        return PreparedData.open(folder)

    def _prepare(self, folder: Path) -> None:
        plan, recipe = self.plan, self.recipe
        if plan.source is None:
            raise BadInput("\n".join(plan.problems))
        tokenizer = recipe.model.tokenizer_source
        if plan.prepared is not None and plan.missing_text:
            present = [source for source in plan.sources if source.name not in plan.missing_text]
            check_made_from(plan.prepared, present, tokenizer, plan.missing_text)
            return
        with self.reporter.task("percent tokenized", 100) as task:

            def on_progress(domain: str, done: int, total: int) -> None:
                task.update(100 * done // max(total, 1), domain)

            prepare(
                plan.sources,
                tokenizer=tokenizer,
                vocab_size=plan.source.vocab_size,
                sequence_length=recipe.data.sequence_length,
                validation_blocks=recipe.data.validation_blocks,
                folder=folder,
                document_format=document_format(recipe),
                workers=recipe.data.workers,
                on_progress=on_progress,
            )

    def _report_data(self) -> None:
        for name, domain in self.data.domains.items():
            self.reporter.line(
                f"prepared {name}: {domain.documents:,} documents, {domain.train_tokens:,} tokens "
                f"in {len(domain.train):,} training blocks, {len(domain.validation):,} validation "
                "blocks"
            )
        for line in self.data.special_token_lines():
            self.reporter.line(line)
        for warning in self.data.overlap_warnings():
            self.reporter.warn(warning)
        for warning in repetition_warnings(plan_domains(self.recipe, self.plan.sources, self.data)):
            self.reporter.warn(warning)

    def _done(self, phase: str) -> bool:
        from drpruning.training.checkpoint import remove_checkpoints

        result = finished_phases(self.recipe, self.folder).get(phase)
        if result is None:
            return False
        self.reporter.line(f"{phase}: done already ({result})")
        if self.accelerator.is_main_process:
            settings = (self.plan.saved or self.recipe).training.checkpoint
            remove_checkpoints(self.files.checkpoints, phase, settings)
        return True

    def prune(self) -> None:
        """Prune, unless it is done or the recipe has no such phase."""
        from drpruning.training.phases import prune

        if self.recipe.prune is None or self._done("prune"):
            return
        check_teacher_tokenizers(self.recipe, "prune", self.data)
        self.measure_reference_losses()
        prune(self.recipe, self.data, self.accelerator, self.reporter)

    def pretrain(self) -> None:
        """Continue pretraining, unless it is done or the recipe has no such phase.

        Raises:
            BadInput: The model to start from has not been pruned yet.
        """
        from drpruning.training.phases import pretrain

        if self.recipe.pretrain is None or self._done("pretrain"):
            return
        if self.recipe.prune is not None and not self.files.pruned.is_dir():
            raise BadInput(
                f"{self.files.pruned}: missing; run `drprune prune` or `drprune run` first"
            )
        check_teacher_tokenizers(self.recipe, "pretrain", self.data)
        self.measure_reference_losses()
        pretrain(self.recipe, self.data, self.accelerator, self.reporter)

    def measure_reference_losses(self) -> None:
        """Write reference_loss.json where reference losses are those of models, unless it is there.

        Raises:
            BadInput: A model cannot be measured, or no law describes what was measured (which is
                in the file all the same).
        """
        if self.recipe.reference_origin == "source":
            self._measure_pruned_model()
            return
        models = self.recipe.reference_models
        if models is None:
            return
        if self.files.reference_loss.is_file():
            ReferenceLosses.read(self.folder, models, self.recipe.initial_ratio).usable()
            return
        found = self._measured(models)
        if self.accelerator.is_main_process:
            found.write(self.folder)
            self.reporter.console.print(reference_losses_table(found))
        self.accelerator.wait_for_everyone()
        found.usable()

    def _measured(self, models: ReferenceModels) -> ReferenceLosses:
        size = self.plan.final_shape.num_parameters()
        return measure_reference_losses(
            models, self.recipe, self.data, self.accelerator, self.reporter, size
        )

    def _measure_pruned_model(self) -> None:
        """Write reference_loss.json with the losses of the model that is pruned.

        They are those of evaluation/source.json, which the stage `evaluate` would measure too.
        """
        file, domains = self.files.reference_loss, self.recipe.data.domains
        if file.is_file():
            ReferenceLosses.read(self.folder, None, domains)
            return
        original = original_model(self.recipe)
        if original == self.recipe.model.reference:
            known = load_evaluation(self.files.evaluation(SOURCE))
            source = ModelToMeasure(name=SOURCE, label=SOURCE, path=original)
            record = known or self.measure(source)
            size, losses = int(record.parameters.total), record.loss
        else:  # a later target of a chain has lost the file that it began with
            named = ReferenceModels(from_model=original)
            (model,) = self._measured(named).models
            size, losses = model.parameters, model.loss
        found = ReferenceLosses.of_pruned_model(original, size, losses)
        self.accelerator.wait_for_everyone()  # every rank has looked for the file
        if self.accelerator.is_main_process and found.reference_loss:
            found.write(self.folder)
        self.accelerator.wait_for_everyone()

    def models(self) -> dict[str, str]:
        """The models of this run so far: name -> folder or Hub name.

        Raises:
            BadInput: One that the run has written is not complete.
        """
        check_results(self.files)
        made = [path for path in (self.files.pruned, self.files.model) if path.is_dir()]
        return {SOURCE: self.recipe.model.reference} | {path.name: str(path) for path in made}

    def evaluate(self) -> None:
        """Measure source, pruned and recovered model on the validation blocks, each once."""
        for model in self.models_to_measure():
            if not self.files.evaluation(model.name).is_file():
                self.measure(model)

        if self.accelerator.is_main_process:
            self.complete_cards()

    def complete_cards(self) -> None:
        """Put what was measured into the model cards."""
        for warning in write_card_results(self.folder):
            self.reporter.warn(warning)

    def _evaluate(self) -> None:
        self.evaluate()
        if self._tasks is not None:
            models = run_models(self.recipe, self.models(), self.files)
            found = show_tasks(models, self._tasks, self.accelerator, self.reporter)
            self.failed_tasks = found.failures
            if self.accelerator.is_main_process:
                self.complete_cards()

    def models_to_measure(self) -> list[ModelToMeasure]:
        """The models of this run so far, under their names in tables."""
        return [
            ModelToMeasure(name=name, label=self._label(name), path=path)
            for name, path in self.models().items()
        ]

    def _label(self, name: str) -> str:
        if name != MODEL:
            return name
        verb = "recovered" if self.recipe.prune else "trained"
        return f"{verb}, {self.recipe.scheduling.policy}"

    @cached_property
    def token_bytes(self) -> TokenBytes | InexactBytesError:
        """How many bytes of text tokens stand for, or why that is not known."""
        return read_token_bytes(self.recipe, self.data)

    def measure(self, model: ModelToMeasure) -> Evaluation:
        """Measure a model on this run's validation blocks and write evaluation/NAME.json."""
        return measure_model(
            model, self.recipe, self.data, self.token_bytes, self.accelerator, self.reporter
        )

    def report(self) -> None:
        """Show the table and write report.html."""
        if self.accelerator.is_main_process:
            show_table([self.folder], self.reporter)
            path = write_report([self.folder])
            if result := next(filter(Path.is_dir, (self.files.model, self.files.pruned)), None):
                self.reporter.line(f"model:  {result}")
            self.reporter.line(f"report: {path}")


def show_table(folders: list[Path], reporter: Reporter) -> None:
    """Print the table of results of one or several runs."""
    table = results_table([load_run(folder) for folder in folders])
    for models in fitting_models(table, reporter.console.width):
        reporter.console.print(render_table_text(table, models))


def open_prepared(folder: Path) -> Run:
    """The run in a folder with its blocks as they are; its text is not looked for."""
    run = Run.open(folder)
    run.data = PreparedData.open(run.recipe.prepared_folder)
    return run
