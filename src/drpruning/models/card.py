"""The model card, README.md, that is written with a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from drpruning import __version__
from drpruning.common.hub import split_revision
from drpruning.pruning import ModelShape, PruningPlan
from drpruning.recipe import Recipe
from drpruning.recipe.distillation import SELF
from drpruning.recipe.yaml_io import dump_yaml


def model_card(
    recipe: Recipe,
    shape: ModelShape,
    phase: Literal["prune", "pretrain"],
    metadata: Mapping[str, Any],
    steps: Mapping[str, int],
) -> str:
    """Write the card of a run's model: Markdown with the front matter that the Hub reads.

    Args:
        recipe: How the model was made.
        shape: Its shape.
        phase: The one that made it: `prune`, or `pretrain` for continued pretraining.
        metadata: Fields for the front matter, see `drpruning.models.auxiliary_files.card_metadata`.
        steps: Phase -> optimizer steps done; fewer than the recipe's where a phase has ended early.
    """
    source = _label(recipe.model.reference, metadata)
    origin = f"a smaller model cut out of {source}" if recipe.prune else source
    if phase == "prune":
        title = f"Cut out of {source} with learned masks"
        summary = "It has not been trained since the cut."
    else:
        title = f"Continued pretraining of {origin}"
        summary = f"The data ratio was steered by `{recipe.scheduling.policy}`."
    shares = "\n".join(f"| {n} | {100 * s:.2f}% |" for n, s in recipe.initial_ratio.items())
    phases = "\n".join(
        f"- {name}: {steps[name]} steps of {p.global_batch} x {recipe.data.sequence_length} tokens"
        f"{_taught(recipe, name, metadata)}"
        for name, p in recipe.phases.items()
        if phase == "pretrain" or name == "prune"
    )
    details = f"""Training:
{phases}

Initial data ratio:

| domain | share |
|---|---|
{shares}"""
    return _card(title, summary, shape, details, metadata)


def cut_model_card(source: str, plan: PruningPlan, metadata: Mapping[str, Any]) -> str:
    """Write the card of a model that was cut by a plan alone.

    Args:
        source: The model that was cut.
        plan: What stayed.
        metadata: Fields for the front matter, see `drpruning.models.auxiliary_files.card_metadata`.
    """
    title = f"Cut out of {_label(source, metadata)} by a pruning plan"
    summary = "Its weights are as they were; it has not been trained since the cut."
    layers = ", ".join(map(str, plan.layers))
    details = f"""Of {plan.source.num_layers} layers these stayed, counted from 0: {layers}.
`plan.json` says what else stayed; `drprune show-plan` on this folder draws it."""
    return _card(title, summary, plan.target, details, metadata)


def _taught(recipe: Recipe, phase: str, metadata: Mapping[str, Any]) -> str:
    """What a line of the training says of teachers."""
    labels = [
        "itself without masks"
        if teacher == SELF
        else _label(teacher, metadata if teacher == recipe.model.reference else {})
        for teacher in recipe.teachers(phase)
    ]
    return f", taught by {' and '.join(labels)}" if labels else ""


def _label(source: str, metadata: Mapping[str, Any]) -> str:
    """What the text calls the source: its name on the Hub, or else the name of its folder.

    The folders above it are nobody's business but the author's.
    """
    known = metadata.get("base_model")
    if split_revision(source)[0] != source:
        name = source
    else:
        name = known if isinstance(known, str) else Path(source).resolve().name
    return "`" + " ".join(name.replace("`", "'").split()) + "`"


def _card(
    title: str, summary: str, shape: ModelShape, details: str, metadata: Mapping[str, Any]
) -> str:
    dimensions = [
        ("layers", shape.num_layers),
        ("hidden size", shape.hidden_size),
        ("intermediate size", shape.intermediate_size),
        ("query heads", shape.num_heads),
        ("key/value heads", shape.num_kv_heads),
        ("head dimension", shape.head_dim),
        ("vocabulary", shape.vocab_size),
        ("parameters", f"{shape.num_parameters():,}"),
    ]
    rows = "\n".join(f"| {name} | {value} |" for name, value in dimensions)
    tags = {"tags": ["pruning", "drpruning"]}
    front_matter = dump_yaml({"library_name": "transformers", **metadata, **tags})
    return f"""---
{front_matter}---

# {title}

{summary}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

| | |
|---|---|
{rows}

{details}

Made with drpruning {__version__}.
"""
