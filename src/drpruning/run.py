"""A run folder and its stages: prepare -> prune -> pretrain -> evaluate -> report.

A stage whose result is there is not run again; one that was interrupted goes on.
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drpruning.console import Reporter
from drpruning.data import PreparedData, prepare
from drpruning.errors import BadInput
from drpruning.planning import (
    RECIPE_FILE,
    domain_sources,
    plan_domains,
    plan_run,
    repetition_warnings,
    source_shape,
)
from drpruning.recipe import Recipe, parse_recipe
from drpruning.report import load_run, render_table_text, results_table, write_report

if TYPE_CHECKING:
    from accelerate import Accelerator

STAGES = ("prepare", "prune", "pretrain", "evaluate", "report")
LABELS = {"source": "source", "pruned": "pruned", "model": "recovered"}


def quiet_libraries() -> None:
    """No progress bars and no advice from the libraries below; errors still come through."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@dataclass
class Run:
    """A recipe together with its folder."""

    recipe: Recipe

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """The run in a folder.

        Raises:
            BadInput: There is no recipe.yaml in it.
        """
        file = folder / RECIPE_FILE
        if not file.is_file():
            raise BadInput(f"{folder}: no run here (no {RECIPE_FILE})")
        import yaml

        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        return cls(parse_recipe({**values, "output": str(folder)}, origin=str(file)))

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.recipe.output)

    @cached_property
    def accelerator(self) -> "Accelerator":
        """Devices and ranks, as `torchrun` or `accelerate launch` set them up."""
        import torch
        from accelerate import Accelerator

        quiet_libraries()
        return Accelerator(cpu=not torch.cuda.is_available())

    @cached_property
    def reporter(self) -> Reporter:
        """The terminal, silent on all ranks but the first."""
        return Reporter(silent=int(os.environ.get("RANK", "0")) != 0)

    def begin(self, command: str) -> None:
        """Check everything that can be checked, claim the folder, note the session.

        Raises:
            BadInput: Something in the recipe cannot work; every problem found is named.
        """
        plan = plan_run(self.recipe)
        if plan.problems:
            raise BadInput("\n".join(plan.problems))
        if self.recipe.model.source is None:
            raise BadInput("model.source: missing; a shape alone can be planned, not trained")
        # Every rank has checked the folder once the accelerator is there; then one writes.
        if self.accelerator.is_main_process:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / RECIPE_FILE).write_text(self.recipe.to_yaml(), encoding="utf-8")
            except OSError as error:
                raise BadInput(f"output: {self.folder}: {error.strerror}") from None
            self._note_session(command)
        self.accelerator.wait_for_everyone()

    def _note_session(self, command: str) -> None:
        from drpruning.training import commit, versions

        session = {
            "time": time.time(),
            "command": command,
            "ranks": self.accelerator.num_processes,
            "versions": versions(),
            "commit": commit(),
        }
        with (self.folder / "sessions.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(session) + "\n")

    def run(self, stages: Iterable[str]) -> None:
        """Run these stages in their order."""
        actions: dict[str, Callable[[], None]] = {
            "prepare": self._report_data,
            "prune": self.prune,
            "pretrain": self.pretrain,
            "evaluate": self.evaluate,
            "report": self.report,
        }
        for stage in STAGES:
            if stage in stages:
                actions[stage]()

    # Stages.

    @cached_property
    def data(self) -> PreparedData:
        """The tokenized blocks; they are made now if they are not there."""
        recipe, folder = self.recipe, self.recipe.prepared_folder
        folder.mkdir(parents=True, exist_ok=True)
        arguments = {
            "tokenizer": str(recipe.model.source),
            "vocab_size": source_shape(recipe).vocab_size,
            "sequence_length": recipe.data.sequence_length,
            "validation_blocks": recipe.data.validation_blocks,
            "folder": folder,
            "workers": recipe.data.workers,
        }
        prepared: PreparedData | None = None
        if self.accelerator.is_main_process:
            with self.reporter.task("prepare, percent", 100) as task:

                def on_progress(domain: str, done: int, total: int) -> None:
                    task.update(100 * done // max(total, 1), domain)

                prepared = prepare(domain_sources(recipe), **arguments, on_progress=on_progress)  # type: ignore[arg-type]
        self.accelerator.wait_for_everyone()
        return prepared or PreparedData.open(folder)

    def _report_data(self) -> None:
        for name, domain in self.data.domains.items():
            self.reporter.line(
                f"prepared {name}: {domain.documents:,} documents, {domain.train_tokens:,} tokens "
                f"in {len(domain.train):,} training blocks, {len(domain.validation):,} validation "
                "blocks"
            )
        for warning in repetition_warnings(plan_domains(self.recipe, self.data)):
            self.reporter.warn(warning)

    def prune(self) -> None:
        """Prune, unless it is done or the recipe has no such phase."""
        from drpruning.training import prune

        if self.recipe.prune is None:
            return
        if (self.folder / "pruned").is_dir():
            self.reporter.line(f"prune: done already ({self.folder / 'pruned'})")
            return
        prune(self.recipe, self.data, self.accelerator, self.reporter)

    def pretrain(self) -> None:
        """Continue pretraining, unless it is done or the recipe has no such phase.

        Raises:
            BadInput: The model to start from has not been pruned yet.
        """
        from drpruning.training import pretrain

        if self.recipe.pretrain is None:
            return
        if (self.folder / "model").is_dir():
            self.reporter.line(f"pretrain: done already ({self.folder / 'model'})")
            return
        if self.recipe.prune is not None and not (self.folder / "pruned").is_dir():
            raise BadInput(
                f"{self.folder / 'pruned'}: not there yet; run `drprune prune` or `drprune run`"
            )
        pretrain(self.recipe, self.data, self.accelerator, self.reporter)

    def models(self) -> dict[str, str]:
        """The models of this run that are there: name -> folder or Hub name."""
        made = {name: self.folder / name for name in ("pruned", "model")}
        there = {name: str(path) for name, path in made.items() if path.is_dir()}
        return {"source": str(self.recipe.model.source)} | there

    def evaluate(self, *, again: bool = False) -> None:
        """Measure the perplexity of source, pruned and recovered model on the validation blocks.

        Args:
            again: Also those that have been measured.
        """
        from drpruning.evaluation import evaluate_perplexity, write_evaluation

        for name, path in self.models().items():
            if (self.folder / "evaluation" / f"{name}.json").is_file() and not again:
                continue
            label = LABELS[name]
            if name == "model":
                verb = "recovered" if self.recipe.prune else "trained"
                label = f"{verb}, {self.recipe.scheduling.policy}"
            record = evaluate_perplexity(
                name,
                label,
                path,
                self.data,
                self.accelerator,
                self.reporter,
                batch_size=self.recipe.training.micro_batch,
                precision=self.recipe.training.precision,
                trust_remote_code=self.recipe.model.trust_remote_code,
            )
            if self.accelerator.is_main_process:
                write_evaluation(record, self.folder / "evaluation")

    def report(self) -> None:
        """Write report.html and show the table."""
        if self.accelerator.is_main_process:
            path = write_report([self.folder])
            show_table([self.folder], self.reporter)
            for name in ("model", "pruned"):
                if (self.folder / name).is_dir():
                    self.reporter.line(f"model:  {self.folder / name}")
                    break
            self.reporter.line(f"report: {path}")


def show_table(folders: list[Path], reporter: Reporter) -> None:
    """Print the table of results of one or several runs."""
    table: Any = render_table_text(results_table([load_run(folder) for folder in folders]))
    reporter.console.print(table)


def evaluate_targets(targets: list[Path], data: Path | None) -> None:
    """Measure every model of the runs, and single models on a run's validation blocks.

    Args:
        targets: Run folders and model folders.
        data: The run whose blocks the models are measured on.

    Raises:
        BadInput: A target is neither, or a model is given without data.
    """
    from drpruning.evaluation import evaluate_perplexity, write_evaluation

    runs = [target for target in targets if (target / RECIPE_FILE).is_file()]
    models = [target for target in targets if target not in runs]
    for model in models:
        if not (model / "config.json").is_file():
            raise BadInput(f"{model}: neither a run folder nor a model folder")
        if data is None:
            raise BadInput(f"{model}: name the run whose data it is measured on with --data RUN")
    for folder in runs:
        Run.open(folder).evaluate(again=True)
    if data is not None:
        home = Run.open(data)
        for model in models:
            record = evaluate_perplexity(
                model.resolve().name,
                str(model),
                str(model),
                home.data,
                home.accelerator,
                home.reporter,
                batch_size=home.recipe.training.micro_batch,
                precision=home.recipe.training.precision,
            )
            write_evaluation(record, home.folder / "evaluation")
        runs.append(data)
    reporter = Reporter()
    if runs:
        show_table(list(dict.fromkeys(runs)), reporter)
