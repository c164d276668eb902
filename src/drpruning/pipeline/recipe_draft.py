"""A first recipe for a model and some text: what is proposed, and the file with its comments.

Proposals follow from the model's config.json and samples of the text, as those of `plan` do.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from drpruning.common.errors import BadInput
from drpruning.data.remote import is_address
from drpruning.models.inspect import SOURCE_FIELD, resolve_target
from drpruning.pipeline.draft_inputs import FoundDomain, FoundModel
from drpruning.pruning import ModelShape, Proposal, propose_shapes
from drpruning.recipe import Phase, Pretrain, Prune, Target
from drpruning.recipe.schema import Data
from drpruning.recipe.validation_text import explain
from drpruning.recipe.yaml_io import dump_yaml, parse_yaml

SMALL_MODEL = 100_000_000
"""Parameters below which weights want a tenfold learning rate: models of 1 to 10 million parameters
trained best at about 1e-3, the paper's of billions at 1e-4."""
LARGE_MODEL = 1_000_000_000
"""Parameters from which activations are recomputed rather than kept."""
SMALLEST_BATCH = 8
FEWEST_STEPS = {"prune": 200, "pretrain": 400}
"""Steps below which a phase has little effect: masks need some hundred to reach their sparsity."""
PRUNE_SHARE = 0.2
"""Part of one pass over the text that pruning gets where the text is too small for both phases."""
EVALUATIONS = 25
"""Evaluations of a phase; each may change the ratio, and forecasts need several."""
FEWEST_VALIDATION_BLOCKS = 16
BLOCKS_PER_VALIDATION = 20
"""Blocks of text, at least, for one of validation in the smallest domain; a tenth is held out, at
most, and in complete documents."""

SECTIONS: dict[str, type[Phase]] = {"prune": Prune, "pretrain": Pretrain}


# What is proposed.


def propose_shares(domains: Sequence[FoundDomain]) -> dict[str, float]:
    """Shares of the blocks by the size of the text, or equal ones where a size is not known.

    They have four digits after the point and sum to 1; no domain gets none.
    """
    sizes = {domain.name: domain.tokens or 0 for domain in domains}
    if not all(sizes.values()):
        sizes = dict.fromkeys(sizes, 1)
    total = sum(sizes.values())
    shares = {name: max(round(size / total, 4), 1e-4) for name, size in sizes.items()}
    largest = max(shares, key=lambda name: shares[name])
    rest = sum(share for name, share in shares.items() if name != largest)
    return shares | {largest: round(1 - rest, 4)}


def propose_budget(source: ModelShape) -> int:
    """A quarter of the source's parameters, two digits of it, or more where that is too few.

    Raises:
        BadInput: The source cannot be pruned at all.
    """
    for share in (0.25, 0.5, 0.75):
        budget = float(f"{share * source.num_parameters():.1e}")
        try:
            propose_shapes(source, round(budget), 1)
        except BadInput:
            continue
        return round(budget)
    raise BadInput(f"{SOURCE_FIELD}: no smaller shape can be cut out of it; prune nothing")


def read_target(text: str, source: ModelShape) -> tuple[Target, list[Proposal]]:
    """Read a target as people write it.

    Args:
        text: A number of parameters (1.3B), a mapping as in the recipe, or the name of a model.
        source: The model to be pruned.

    Returns:
        The target, and where it is a number of parameters the shapes that are proposed for it.

    Raises:
        BadInput: It is none of these, or the source cannot be pruned to it.
    """
    field = "--target"
    value = parse_yaml(text, field)
    try:
        target = Target.model_validate({"params": value})
    except ValidationError as wrong_count:
        if isinstance(value, int | float):
            raise BadInput(f"{field}: {explain(wrong_count, Target)[0]}") from None
        try:
            target = Target.model_validate(value)
        except ValidationError as error:
            raise BadInput(f"{field}: {'; '.join(explain(error, Target))}") from None
    resolved, proposals = resolve_target(target, source, None, field)
    try:
        if source.pruned_to(**resolved.dimensions()) == source:
            raise BadInput("is the model's own shape; nothing would be pruned")
    except BadInput as error:
        raise BadInput(f"{field}: {error}") from None
    return target, proposals


@dataclass(frozen=True)
class Sizes:
    """Lengths that suit the model and the amount of text.

    Attributes:
        sequence_length: Tokens per block.
        validation_blocks: Per domain.
        steps: Phase -> steps.
        global_batch: Phase -> blocks per step.
    """

    sequence_length: int
    validation_blocks: int
    steps: dict[str, int]
    global_batch: dict[str, int]

    def tokens(self, phase: str, steps: int) -> int:
        """Tokens that a phase of so many steps trains on."""
        return steps * self.global_batch[phase] * self.sequence_length


def propose_sizes(model: FoundModel, domains: Sequence[FoundDomain], *, prunes: bool) -> Sizes:
    """The paper's sizes, or smaller ones by which the text is read about once.

    Args:
        model: What is trained.
        domains: The text; where the size of one is not known, there is taken to be enough.
        prunes: Whether there is a pruning phase.
    """
    known = [domain.tokens for domain in domains if domain.tokens]
    length: int = min(Data.model_fields["sequence_length"].default, model.positions or 4096)
    while known and length > 16 and min(known) < 2 * BLOCKS_PER_VALIDATION * length:
        length //= 2
    blocks = sum(known) // length if len(known) == len(domains) else None
    share = {"prune": PRUNE_SHARE, "pretrain": 1 - PRUNE_SHARE if prunes else 1.0}
    most = {"prune": 3200, "pretrain": 48000}  # the paper's
    steps, batches = {}, {}
    for phase, section in SECTIONS.items():
        batch, own = int(section.model_fields["global_batch"].default), share[phase]
        steps[phase] = most[phase]
        if blocks is not None:
            while batch > SMALLEST_BATCH and own * blocks / batch < 5 * FEWEST_STEPS[phase]:
                batch //= 2
            whole = round(own * blocks / batch)
            steps[phase] = min(most[phase], max(FEWEST_STEPS[phase], whole // 100 * 100))
        batches[phase] = batch
    # As many validation blocks in an evaluation as training blocks before it: a forward pass is a
    # third of a step, so that evaluations take about a quarter of the time.
    trained = [evaluate_every(p, steps[p]) * batches[p] for p in steps if prunes or p != "prune"]
    most_validation: int = Data.model_fields["validation_blocks"].default
    validation = max(FEWEST_VALIDATION_BLOCKS, min(trained) // len(domains))
    return Sizes(length, min(validation, most_validation), steps, batches)


def evaluate_every(phase: str, steps: int) -> int:
    """Steps between evaluations in a phase of so many steps."""
    most: int = SECTIONS[phase].model_fields["evaluate_every"].default
    return max(1, min(most, steps // EVALUATIONS))


# The file.


@dataclass(frozen=True)
class Draft:
    """The answers from which a recipe is written.

    Attributes:
        model: The model to start from.
        domains: The text.
        target: Field of model.target -> value; None: nothing is pruned.
        reason: What speaks for the target, if it was proposed.
        sizes: Lengths and batches.
        steps: Phase -> steps, of the phases that there are.
        output: The run folder.
    """

    model: FoundModel
    domains: Sequence[FoundDomain]
    target: Mapping[str, Any] | None
    reason: str
    sizes: Sizes
    steps: Mapping[str, int]
    output: str

    def text(self, file: str) -> str:
        """The recipe as YAML with comments.

        Args:
            file: Its name, for the commands in the comments.
        """
        lines = [
            "# Prunes a model to a smaller shape and trains it until it has recovered."
            if self.target is not None
            else "# Trains a model further, and steers which domain it reads more of.",
            f"#   drprune plan {file}     says what will happen and what cannot work",
            f"#   drprune run {file}      does it; the same command resumes it",
            "# What you may want to change is written out. Every other field has a default:",
            "# docs/recipe.md lists them, and editors show them (see drprune schema --help).",
            *self._model(),
            *self._data(),
            "",
            "scheduling:",
            *_block(
                {
                    "policy": (
                        "drpruning",
                        "domains that fall behind get more text; constant: the shares above stay",
                    )
                }
            ),
            *(line for phase in self.steps for line in self._phase(phase)),
            *self._training(),
        ]
        return "\n".join(lines) + "\n"

    def _model(self) -> list[str]:
        count = self.model.shape.num_parameters()
        lines = ["", "model:", *_block({"source": (self.model.name, f"{count:,} parameters")})]
        if self.target is None:
            return [*lines, "  # no target: the model keeps its shape and is only trained further"]
        about = f"  # the shape to prune to; {self.reason}" if self.reason else ""
        return [*lines, f"  target:{about}", *_block(self.target, indent=4)]

    def _data(self) -> list[str]:
        shares = propose_shares(self.domains)
        known = all(domain.tokens for domain in self.domains)
        basis = "by size" if known else "equal, as the size of some is not known yet"
        length = "tokens per block"
        if self.model.positions:
            length += f"; the model was made for at most {self.model.positions:,}"
        settings: dict[str, Any] = {
            "sequence_length": (self.sizes.sequence_length, length),
            "validation_blocks": (
                self.sizes.validation_blocks,
                "of a domain, at most; more: steadier losses, slower evaluations",
            ),
        }
        if root := _common_folder(self.domains):
            settings["root"] = (root, "the folder of the sources below")
        lines = ["", "data:", *_block(settings)]
        lines.append(f"  domains:  # share: part of the training text at first, {basis}; sums to 1")
        below = f"{root}/" if root else ""
        for domain in self.domains:
            fields: dict[str, Any] = {"source": domain.source.removeprefix(below)}
            if domain.validation is not None:
                fields["validation"] = domain.validation.removeprefix(below)
            fields["share"] = shares[domain.name]
            lines.append(f"    {_flow({domain.name: fields})[1:-1]}  # {domain.size_text()}")
        return lines

    def _phase(self, phase: str) -> list[str]:
        steps, batch = self.steps[phase], self.sizes.global_batch[phase]
        what = "learns what to cut, then cuts" if phase == "prune" else "recovers what pruning cost"
        if self.target is None:
            what = "trains on"
        tokens = self.sizes.tokens(phase, steps)
        small = self.model.shape.num_parameters() < SMALL_MODEL
        fields: dict[str, Any] = {
            "steps": (steps, f"{tokens:,} tokens"),
            "global_batch": (batch, "blocks per step, over all GPUs"),
            "evaluate_every": (
                evaluate_every(phase, steps),
                "steps between evaluations; each may change the shares",
            ),
            "learning_rate": (
                1e-3 if small else 1e-4,
                "models below 0.1B parameters want about 1e-3, larger ones 1e-4",
            ),
        }
        if phase == "prune":
            fields["mask_samples"] = (4, "parts of a batch with noise of their own; divides it")
        lines = ["", f"{phase}:  # {what}", *_block(fields)]
        if phase == "pretrain" and self.target is not None:
            other = f"{'  # distill: none':<34}"
            lines.append(
                f"{other}  # the model that was pruned teaches; none: faster steps, text alone"
            )
        return lines

    def _training(self) -> list[str]:
        large = self.model.shape.num_parameters() >= LARGE_MODEL
        fields = {
            "micro_batch": (4, "blocks at a time on one GPU; fewer take less memory"),
            "precision": ("bf16", "or fp32"),
            "compile": (False, "true: faster steps after some minutes of compiling"),
            "gradient_checkpointing": (large, "true: less memory, slower steps"),
            "seed": (17, "of the order of the text and of the noise"),
        }
        return [
            "",
            "training:",
            *_block(fields),
            f"  checkpoint: {_flow({'every_steps': 200, 'keep': 2})}",
            "",
            *_block({"output": (self.output, "the run folder")}, indent=0),
        ]


def _common_folder(domains: Sequence[FoundDomain]) -> str:
    """The folder in which all text of several domains lies; nothing where there is none."""
    places = [place for d in domains for place in (d.source, d.validation) if place is not None]
    if len(domains) < 2 or any(domain.on_hub or is_address(domain.source) for domain in domains):
        return ""
    if len({place.startswith("/") for place in places}) > 1:
        return ""
    root = os.path.commonpath(places)
    inside = all(place.startswith(f"{root}/") for place in places)
    return root if inside and Path(root).is_dir() else ""


def _flow(value: Any) -> str:
    return dump_yaml(value, default_flow_style=True).strip()


def _block(fields: Mapping[str, Any], indent: int = 2) -> list[str]:
    """Lines `key: value  # comment`; a value is a pair with a comment, or stands alone."""
    lines = []
    for key, entry in fields.items():
        value, comment = entry if isinstance(entry, tuple) else (entry, "")
        line = " " * indent + _flow({key: value})[1:-1]
        lines.append(f"{line:<34}  # {comment}" if comment else line)
    return lines
