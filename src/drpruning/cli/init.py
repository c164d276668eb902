"""`drprune init`: questions from whose answers a recipe is written, and flags in their place."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import typer

from drpruning.cli.run_plan_tables import proposals_table
from drpruning.common.console import make_table, plain_console
from drpruning.common.errors import BadInput
from drpruning.common.files import atomic_write, check_output_file
from drpruning.pipeline.draft_inputs import FoundDomain, FoundModel, find_domains, find_model
from drpruning.pipeline.recipe_draft import (
    Draft,
    Sizes,
    propose_budget,
    propose_shares,
    propose_sizes,
    read_target,
)
from drpruning.pipeline.targets import plan_recipe
from drpruning.pruning import ModelShape, Proposal
from drpruning.recipe import parse_recipe
from drpruning.recipe.model import DIMENSIONS
from drpruning.recipe.yaml_io import parse_yaml

T = TypeVar("T")
NO_PRUNING = "none"
SCHEMA_FILE = "recipe.schema.json"
"""The schema beside a recipe to which the recipe's first line can lead editors."""
STEPS = {"prune": "--prune-steps", "pretrain": "--pretrain-steps"}


@dataclass(frozen=True)
class Flags:
    """What was given on the command line in place of answers.

    Attributes:
        model: `--model`.
        domains: `--domain`, as often as it was given.
        target: `--target` or `--params`.
        steps: Phase -> its steps, None where they were not given.
        output: `--output`.
        yes: Whether proposals are taken without a question.
    """

    model: str | None
    domains: Sequence[str]
    target: str | None
    steps: Mapping[str, int | None]
    output: str | None
    yes: bool

    def missing(self) -> list[str]:
        """The flags without which there is something to ask."""
        known = {"--model": self.model is not None, "--domain": bool(self.domains)}
        if not self.yes:
            known["--target"] = self.target is not None
            for phase, flag in STEPS.items():
                asked = phase != "prune" or self.target != NO_PRUNING
                known[flag] = self.steps[phase] is not None or not asked
            known["--output"] = self.output is not None
        return [flag for flag, is_known in known.items() if not is_known]


def can_ask() -> bool:
    """Whether there is someone to answer."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def make_recipe(file: Path, flags: Flags, *, force: bool) -> None:
    """Ask what the flags do not say, write the recipe, and name the next commands.

    Args:
        file: The recipe to be.
        flags: Answers that are known.
        force: Whether a file that is there may be replaced.

    Raises:
        BadInput: There is such a file; nobody can be asked and a flag is missing; or an answer
            given as a flag cannot work. Nothing is written then.
    """
    if not force and (file.exists() or file.is_symlink()):
        raise BadInput(f"{file}: exists; name another file, or replace it with --force")
    check_output_file(file, "RECIPE", lambda _: True)
    if not can_ask() and (missing := flags.missing()):
        proposals = "" if flags.yes else "; --yes takes the proposal for all but model and domains"
        raise BadInput(f"there is no terminal to ask on: give {', '.join(missing)}{proposals}")
    text = _Questions(flags).draft(file)
    if (file.parent / SCHEMA_FILE).is_file():  # editors complain of one that is missing
        text = f"# yaml-language-server: $schema={SCHEMA_FILE}\n{text}"
    atomic_write(file, text)
    typer.echo(f"recipe: {file}")
    typer.echo(f"next:   drprune plan {file}     what it will do, and what cannot work")
    typer.echo(f"        drprune run {file}      does it")


class _Questions:
    """The questions in their order; answers that cannot work are asked for again."""

    def __init__(self, flags: Flags) -> None:
        self.flags = flags
        self.console = plain_console()

    def draft(self, file: Path) -> str:
        """The text of the recipe, which `drprune plan` has nothing to say against."""
        model = self._answer(
            self.flags.model, "model: a folder, or a name on the Hub", None, find_model
        )
        self.console.print(f"  {_shape_text(model.shape)}")
        domains = self._domains(model)
        target, reason = self._target(model)
        sizes = propose_sizes(model, domains, prunes=target is not None)
        steps = self._steps(sizes, prunes=target is not None)

        def finish(output: str) -> str:
            draft = Draft(model, domains, target, reason, sizes, steps, output)
            return _checked(draft.text(str(file)))

        proposed = f"runs/{Path(model.name).name.lower()}"
        return self._answer(self.flags.output, "output: the run folder", proposed, finish)

    def _answer(
        self, flag: str | None, question: str, proposal: str | None, use: Callable[[str], T]
    ) -> T:
        """What an answer stands for: a flag's, the proposal with --yes, or one that is typed."""
        if flag is None and self.flags.yes:
            flag = proposal
        if flag is not None:
            return use(flag)
        while True:
            try:
                answer = str(typer.prompt(question, default=proposal, show_default=bool(proposal)))
            except typer.Abort:
                raise KeyboardInterrupt from None
            try:
                return use(answer.strip())
            except BadInput as error:
                typer.echo(f"  {error}", err=True)
            except OSError as error:  # a folder that may not be searched, a name that is too long
                typer.echo(f"  {error.filename}: {error.strerror}", err=True)

    def _domains(self, model: FoundModel) -> list[FoundDomain]:
        domains: list[FoundDomain] = []

        def add(text: str) -> bool:
            if text:
                domains[:] = find_domains(text, model.name, domains)
            return bool(text)

        for text in self.flags.domains:
            add(text)
        if not domains:
            question = "text: NAME=PATH, a folder of domains, a file, or a dataset on the Hub"
            self._answer(None, question, None, add)
            while self._answer(None, "more text (Enter: no more)", "", add):
                pass
        table = make_table("domain", "text", "size", "share", left=(0, 1))
        shares = propose_shares(domains)
        for one in domains:
            table.add_row(one.name, one.source, one.size_text(), f"{100 * shares[one.name]:.2f}%")
        self.console.print(table)
        return domains

    def _target(self, model: FoundModel) -> tuple[dict[str, Any] | None, str]:
        """What stands in model.target, None where nothing is pruned; and what speaks for it."""
        if self.flags.target is None:
            proposal = f"{propose_budget(model.shape):,}"
        else:
            proposal = self.flags.target
        question = "target: a number of parameters such as 1.3B, a shape such as {num_layers: 24}, "
        question += f"a model of that shape, or {NO_PRUNING}"

        def read(text: str) -> tuple[dict[str, Any] | None, str]:
            if text == NO_PRUNING:
                return None, ""
            target, proposals = read_target(text, model.shape)
            if proposals:
                return self._chosen(proposals)
            return target.model_dump(exclude_none=True), ""

        return self._answer(self.flags.target, question, proposal, read)

    def _chosen(self, proposals: list[Proposal]) -> tuple[dict[str, Any], str]:
        """The dimensions of a proposed shape, of the first where there is no question."""
        asked = self.flags.target is None and not self.flags.yes and len(proposals) > 1
        self.console.print(proposals_table(proposals, numbered=asked))

        def place(answer: str) -> int:
            if answer not in map(str, range(1, len(proposals) + 1)):
                raise BadInput(f"write a number from 1 to {len(proposals)}")
            return int(answer) - 1

        flag = None if asked else "1"
        shape = proposals[self._answer(flag, "which of these", "1", place)].shape
        dimensions = {name: getattr(shape, name) for name in DIMENSIONS}
        return dimensions, f"{shape.num_parameters():,} parameters"

    def _steps(self, sizes: Sizes, *, prunes: bool) -> dict[str, int]:
        def positive(answer: str) -> int:
            if not answer.replace(",", "").isdecimal() or not int(answer.replace(",", "")):
                raise BadInput(f"{answer}: write a number of steps above 0")
            return int(answer.replace(",", ""))

        steps = {}
        for phase, title in (("prune", "pruning"), ("pretrain", "training after it")):
            if phase == "prune" and not prunes:
                continue
            given, proposal = self.flags.steps[phase], sizes.steps[phase]
            question = f"steps of {title if prunes else 'training'}, of "
            question += f"{sizes.tokens(phase, 1):,} tokens each"
            flag = None if given is None else str(given)
            steps[phase] = self._answer(flag, question, str(proposal), positive)
        return steps


def _shape_text(shape: ModelShape) -> str:
    return (
        f"{shape.num_parameters():,} parameters: {shape.num_layers} layers, hidden size "
        f"{shape.hidden_size:,}, feed-forward {shape.intermediate_size:,}, {shape.num_heads} heads"
    )


def _checked(text: str) -> str:
    """The text of a recipe that can run.

    Raises:
        BadInput: It cannot; what `drprune plan` would say.
    """
    if problems := plan_recipe(parse_recipe(parse_yaml(text, "recipe"))).problems:
        raise BadInput("\n".join(problems))
    return text
