"""The model card, README.md, that is written with a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from drpruning import __version__
from drpruning.common.hub import split_revision
from drpruning.pruning import ModelShape, PruningPlan
from drpruning.pruning.clients import attention_by_index, client_limits
from drpruning.recipe import Recipe
from drpruning.recipe.distillation import SELF
from drpruning.recipe.yaml_io import dump_yaml

RESULTS_BEGIN = "<!-- results, rewritten by drprune evaluate -->"
RESULTS_END = "<!-- end of results -->"
_NO_RESULTS = "Not measured yet."
_PHASE_TITLES = {"prune": "pruning", "pretrain": "continued pretraining"}
_CITATION = """```bibtex
@inproceedings{deng-etal-2025-drpruning,
    title = "{DRP}runing: Efficient Large Language Model Pruning through Distributionally Robust Optimization",
    author = "Deng, Hexuan and Jiao, Wenxiang and Liu, Xuebo and Li, Jing and Zhang, Min and Tu, Zhaopeng",
    booktitle = "Proceedings of the 63rd Annual Meeting of the Association for Computational Linguistics (Volume 1: Long Papers)",
    year = "2025",
    url = "https://aclanthology.org/2025.acl-long.1414/"
}
```"""  # noqa: E501
_TRANSFORMERS = """With Transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```"""
_COMMANDS = {
    "vLLM": "vllm serve path/to/this/folder",
    "llama.cpp": "python llama.cpp/convert_hf_to_gguf.py path/to/this/folder "
    "--outfile model.gguf --outtype bf16\n"
    'llama-cli -m model.gguf -p "Once upon a time"',
}
"""Program that serves models -> the commands that load one."""


@dataclass(frozen=True, kw_only=True)
class TrainedPhase:
    """What a card says of a phase.

    Attributes:
        steps: Optimizer steps done; fewer than the recipe's where the phase has ended early.
        mean_ratio: Domain -> its mean share of the training data; empty where not known.
    """

    steps: int
    mean_ratio: Mapping[str, float]


def model_card(
    recipe: Recipe,
    shape: ModelShape,
    phase: Literal["prune", "pretrain"],
    metadata: Mapping[str, Any],
    trained: Mapping[str, TrainedPhase],
    plan: PruningPlan | None = None,
) -> str:
    """Write the card of a run's model: Markdown with the front matter that the Hub reads.

    Args:
        recipe: How the model was made.
        shape: Its shape.
        phase: The one that made it: `prune`, or `pretrain` for continued pretraining.
        metadata: Fields for the front matter, see `drpruning.models.auxiliary_files.card_metadata`.
        trained: Phase -> what was done in it.
        plan: What stayed of the source; None where nothing was pruned.
    """
    source = _label(recipe.model.reference, metadata)
    origin = f"a smaller model cut out of {source}" if recipe.prune else source
    if phase == "prune":
        title = f"Cut out of {source} with learned masks"
        summary = "It has not been trained since the cut."
    else:
        title = f"Continued pretraining of {origin}"
        summary = f"The data ratio was steered by `{recipe.scheduling.policy}`."
    phases = {
        name: trained[name] for name in recipe.phases if phase == "pretrain" or name == "prune"
    }
    details = [
        _training(recipe, phases, metadata),
        _data(recipe, phases),
        f"## Results\n\n{RESULTS_BEGIN}\n{_NO_RESULTS}\n{RESULTS_END}",
    ]
    return _card(title, summary, shape, plan, details, source, metadata)


def cut_model_card(source: str, plan: PruningPlan, metadata: Mapping[str, Any]) -> str:
    """Write the card of a model that was cut by a plan alone.

    Args:
        source: The model that was cut.
        plan: What stayed.
        metadata: Fields for the front matter, see `drpruning.models.auxiliary_files.card_metadata`.
    """
    label = _label(source, metadata)
    title = f"Cut out of {label} by a pruning plan"
    summary = "Its weights are as they were; it has not been trained since the cut."
    layers = ", ".join(map(str, plan.layers))
    details = f"""Of {plan.source.num_layers} layers these stayed, counted from 0: {layers}.
`plan.json` says what else stayed; `drprune show-plan` on this folder draws it."""
    return _card(title, summary, plan.target, plan, [details], label, metadata)


def with_results(card: str, results: str) -> str:
    """A card with other results; one whose marks of their place are gone stays as it is."""
    before, begin, rest = card.partition(f"{RESULTS_BEGIN}\n")
    _, end, after = rest.partition(f"\n{RESULTS_END}")
    return f"{before}{begin}{results}{end}{after}" if begin and end else card


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, whose first column is text and whose others are numbers."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    escaped = [[" ".join(cell.replace("|", r"\|").split()) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _training(
    recipe: Recipe, phases: Mapping[str, TrainedPhase], metadata: Mapping[str, Any]
) -> str:
    """Steps and tokens of each phase, and its teachers."""
    length = recipe.data.sequence_length
    lines = []
    for name, done in phases.items():
        batch = recipe.phases[name].global_batch
        lines.append(
            f"- {_PHASE_TITLES[name]}: {done.steps:,} steps of {batch:,} x {length:,} tokens, "
            f"{done.steps * batch * length:,} in all{_taught(recipe, name, metadata)}"
        )
    return "\n".join(["## Training", "", *lines])


def _data(recipe: Recipe, phases: Mapping[str, TrainedPhase]) -> str:
    """The share that each domain was to have at first, and the share that it had on average."""
    known = {name: done.mean_ratio for name, done in phases.items() if done.mean_ratio}
    head = ["domain", "initial share", *(f"mean share, {_PHASE_TITLES[name]}" for name in known)]
    rows = [
        [name, *(f"{100 * s:.2f}%" for s in (share, *(r.get(name, 0.0) for r in known.values())))]
        for name, share in recipe.initial_ratio.items()
    ]
    return f"## Data\n\n{markdown_table(head, rows)}"


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
    title: str,
    summary: str,
    shape: ModelShape,
    plan: PruningPlan | None,
    details: Sequence[str],
    source: str,
    metadata: Mapping[str, Any],
) -> str:
    more = {"pipeline_tag": "text-generation", "tags": ["pruning", "drpruning"]}
    front_matter = dump_yaml({"library_name": "transformers", **metadata, **more})
    parts = [
        f"---\n{front_matter}---",
        f"# {title}",
        summary,
        f"## Use\n\n{_TRANSFORMERS}",
        *_served(shape, plan),
        f"## Shape\n\n{_shapes(shape, plan)}",
        *details,
        f"## Licence\n\n{_licence(source, metadata)}",
        f"## Citation\n\n{_CITATION}",
        f"Made with drpruning {__version__}.",
    ]
    return "\n\n".join(parts) + "\n"


def _served(shape: ModelShape, plan: PruningPlan | None) -> list[str]:
    """How to load the model in other programs, or why they do not load it."""
    parts = []
    mixed = plan and attention_by_index(plan.source, plan.layers)
    for client, commands in _COMMANDS.items():
        broken = [
            limit.problem
            for limit in client_limits(shape)
            if limit.severe and any(effect.startswith(f"{client} ") for effect in limit.effects)
        ]
        if mixed and client in mixed:
            parts.append(f"Not with {client}: {mixed}.")
        elif broken:
            parts.append(f"Not with {client}: {broken[0]}.")
        else:
            parts.append(f"With {client}:\n\n```console\n{commands}\n```")
    return parts


def _shapes(shape: ModelShape, plan: PruningPlan | None) -> str:
    """The dimensions of the model, beside those of the source where it was pruned."""
    shapes = {"source": plan.source, "this model": shape} if plan else {"this model": shape}
    dimensions = {
        "layers": "num_layers",
        "hidden size": "hidden_size",
        "intermediate size": "intermediate_size",
        "query heads": "num_heads",
        "key/value heads": "num_kv_heads",
        "head dimension": "head_dim",
        "vocabulary": "vocab_size",
    }
    rows = [
        [name, *(str(getattr(one, field)) for one in shapes.values())]
        for name, field in dimensions.items()
    ]
    rows.append(["parameters", *(f"{one.num_parameters():,}" for one in shapes.values())])
    return markdown_table(["", *shapes], rows)


def _licence(source: str, metadata: Mapping[str, Any]) -> str:
    """Whose terms apply to the model, as far as the source's card names them."""
    name = metadata.get("license_name") or metadata.get("license")
    if not isinstance(name, str):
        return f"The terms of {source} apply; see there."
    link = metadata.get("license_link")
    known = f"[{name}]({link})" if isinstance(link, str) else f"`{name}`"
    return f"The terms of {source} apply: {known}."
