"""The model card, README.md, that is written with a model."""

from collections.abc import Mapping
from typing import Literal

from drpruning import __version__
from drpruning.pruning import ModelShape, PruningPlan
from drpruning.recipe import Recipe

_SUMMARIES = {
    "prune": "Cut out of {source} with learned masks; it has not been trained since the cut.",
    "pretrain": "Continued pretraining of {origin}, with the data ratio steered by `{policy}`.",
}


def model_card(
    recipe: Recipe,
    shape: ModelShape,
    phase: Literal["prune", "pretrain"],
    steps: Mapping[str, int],
) -> str:
    """Write the card of a run's model: Markdown with the front matter that the Hub reads.

    Args:
        recipe: How the model was made.
        shape: Its shape.
        phase: The one that made it: `prune`, or `pretrain` for continued pretraining.
        steps: Phase -> optimizer steps done; fewer than the recipe's where a phase has ended early.
    """
    source = recipe.model.source
    origin = f"a smaller model cut out of {source}" if recipe.prune else str(source)
    summary = _SUMMARIES[phase].format(
        source=source, origin=origin, policy=recipe.scheduling.policy
    )
    shares = "\n".join(f"| {n} | {100 * s:.2f}% |" for n, s in recipe.initial_ratio.items())
    phases = "\n".join(
        f"- {name}: {steps[name]} steps of {p.global_batch} x {recipe.data.sequence_length} tokens"
        for name, p in recipe.phases.items()
        if phase == "pretrain" or name == "prune"
    )
    details = f"""Training:
{phases}

Initial data ratio:

| domain | share |
|---|---|
{shares}"""
    return _card(str(source), summary, shape, details)


def cut_model_card(source: str, plan: PruningPlan) -> str:
    """Write the card of a model that was cut by a plan alone.

    Args:
        source: The model that was cut.
        plan: What stayed.
    """
    summary = (
        f"Cut out of {source} by a pruning plan, the weights as they were; it has not been trained "
        "since the cut."
    )
    layers = ", ".join(map(str, plan.layers))
    details = f"""Of {plan.source.num_layers} layers these stayed, counted from 0: {layers}.
`plan.json` says what else stayed; `drprune show-plan` on this folder draws it."""
    return _card(source, summary, plan.target, details)


def _card(source: str, summary: str, shape: ModelShape, details: str) -> str:
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
    return f"""---
library_name: transformers
base_model: {source}
tags: [pruning, drpruning]
---

# {summary.split(",", maxsplit=1)[0].rstrip(".")}

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
