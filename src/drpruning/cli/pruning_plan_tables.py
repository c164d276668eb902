"""What `drprune show-plan` and `drprune compare-plans` print."""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from string import ascii_uppercase

from rich.console import Console
from rich.table import Table

from drpruning.common.console import make_table, plain_console
from drpruning.pruning import ModelShape, PruningPlan
from drpruning.pruning.shapes import PRUNABLE_LABELS
from drpruning.pruning.similarity import PlanComparison
from drpruning.report.formats import ranges

SHADES, ASCII_SHADES = "·░▒▓█", ".:-=#"
"""Nothing of a run of units stays, up to a third, up to two thirds, more, all of it."""
LAYER_CELLS, HIDDEN_CELLS = 24, 64
"""Characters of a picture of the feed-forward dimensions of a layer, and of the hidden ones."""


def print_pruning_plan(plan: PruningPlan, *, layers: bool, console: Console | None = None) -> None:
    """Print shapes before and after, and a picture of what stays.

    Args:
        plan: What to print.
        layers: Whether to name the heads that each layer keeps.
        console: Where to; default: standard output.
    """
    console = console or plain_console()
    source = plan.source
    shades = _shades(console)
    console.print(_shape_table(source, plan.target))
    console.print(f"layers  {picture(plan.layers, source.num_layers, source.num_layers, shades)}")
    console.print(f"hidden  {picture(plan.hidden, source.hidden_size, HIDDEN_CELLS, shades)}")
    console.print(f"layers removed: {_spans(plan.removed_layers)}", soft_wrap=True)
    if source.differences(plan.target).keys() & {"num_heads", "intermediate_size"}:
        console.print(_layer_table(plan, shades, numbers=layers))
    console.print(
        f"{shades[-1]} stays, {shades[0]} removed, {shades[1:-1]} some of a run of dimensions stay"
    )


def print_comparisons(
    comparisons: Sequence[PlanComparison], console: Console | None = None
) -> None:
    """Print how far each pair of plans agrees, under letters for the plans."""
    console = console or plain_console()
    names = dict.fromkeys(name for c in comparisons for name in (c.first, c.second))
    letters = dict(zip(names, _letters(len(names)), strict=True))
    for name, letter in letters.items():
        console.print(f"{letter}  {name}", soft_wrap=True, markup=False)
    pairs = [(f"{letters[c.first]} {letters[c.second]}", c) for c in comparisons]
    console.print(_similarity_table("plans", pairs))
    for pair, comparison in pairs:
        first, second = pair.split()
        differences = {
            f"layers only {first} keeps": comparison.only_first,
            f"layers only {second} keeps": comparison.only_second,
            "layers with other heads": comparison.other_heads,
        }
        lines = [f"{what}: {_spans(which)}" for what, which in differences.items() if which]
        console.print(f"{pair}  {'; '.join(lines) or 'the same layers and heads'}", soft_wrap=True)


def print_history(comparisons: Sequence[PlanComparison], console: Console | None = None) -> None:
    """Print how far the plan at each evaluation agrees with the last one of the run."""
    console = console or plain_console()
    console.print(f"share of decisions as in the {comparisons[-1].second} plan")
    rows = [(comparison.first, comparison) for comparison in comparisons]
    console.print(_similarity_table("plan at", rows))


def picture(kept: Collection[int], size: int, cells: int, shades: str = SHADES) -> str:
    """One character for each of at most `cells` runs of units of (nearly) equal length.

    Args:
        kept: Units that stay.
        size: Number of units.
        cells: Most characters.
        shades: Characters from "none of the run stays" to "all of it stays".
    """
    chosen, cells = set(kept), min(cells, size)
    edges = [cell * size // cells for cell in range(cells + 1)]
    text = ""
    for low, high in pairwise(edges):
        stay, length = len(chosen.intersection(range(low, high))), high - low
        partly = shades[1 + stay * (len(shades) - 2) // length] if stay < length else shades[-1]
        text += partly if stay else shades[0]
    return text


def _spans(indices: Sequence[int]) -> str:
    return ranges(indices, separator=" ", dash="-") or "none"


def _shades(console: Console) -> str:
    return SHADES if console.encoding.lower().startswith("utf") else ASCII_SHADES


def _letters(count: int) -> list[str]:
    if count <= len(ascii_uppercase):
        return list(ascii_uppercase[:count])
    return [f"{number}" for number in range(1, count + 1)]


def _shape_table(source: ModelShape, target: ModelShape) -> Table:
    table = make_table(source.model_type, "before", "after", "stays")
    counts = {
        label: (getattr(source, name), getattr(target, name))
        for name, label in PRUNABLE_LABELS.items()
    }
    total = source.num_parameters(), target.num_parameters()
    embedding = source.num_embedding_parameters(), target.num_embedding_parameters()
    counts |= {
        "parameters": total,
        "  embedding": embedding,
        "  rest": (total[0] - embedding[0], total[1] - embedding[1]),
    }
    for name, (before, after) in counts.items():
        table.add_row(name, f"{before:,}", f"{after:,}", f"{after / before:.1%}")
    return table


def _layer_table(plan: PruningPlan, shades: str, *, numbers: bool) -> Table:
    """A row for each layer of the source; a removed one keeps nothing."""
    source, cut = plan.source, plan.source.differences(plan.target)
    pictures, indices = {}, {}
    if "num_heads" in cut:
        pictures["heads"] = [_head_picture(source, kept, shades) for kept in plan.heads]
        if numbers and source.queries_per_group > 1:
            indices["key/value heads"] = [_spans(kept) for kept in plan.kv_groups]
        if numbers:
            indices["query heads"] = [_spans(kept) for kept in plan.heads]
    if "intermediate_size" in cut:
        size = source.intermediate_size
        pictures["intermediate"] = [
            picture(kept, size, LAYER_CELLS, shades) for kept in plan.intermediate
        ]
    table = make_table("layer", *pictures, *indices, left=range(1, 5))
    blank = str.maketrans(shades[1:], shades[0] * (len(shades) - 1))
    removed = [column[0].translate(blank) for column in pictures.values()]
    places = {layer: place for place, layer in enumerate(plan.layers)}
    for layer in range(source.num_layers):
        if layer in places:
            columns = [*pictures.values(), *indices.values()]
            table.add_row(str(layer), *(column[places[layer]] for column in columns))
        else:
            table.add_row(str(layer), *removed, *("removed" for _ in indices))
    return table


def _head_picture(source: ModelShape, kept: Collection[int], shades: str) -> str:
    """One character a query head; key-value groups of several stand apart."""
    size = source.queries_per_group
    marks = picture(kept, source.num_heads, source.num_heads, shades)
    groups = [marks[start : start + size] for start in range(0, len(marks), size)]
    return (" " if size > 1 else "").join(groups)


def _similarity_table(title: str, rows: Sequence[tuple[str, PlanComparison]]) -> Table:
    """A row a comparison; what chance gives below, or in brackets where it differs between them."""
    names = list(dict.fromkeys(name for _, c in rows for name in c.similarity))
    same = all(c.chance == rows[0][1].chance for _, c in rows)
    table = make_table(title, *names)

    def cell(comparison: PlanComparison, name: str) -> str:
        chance = "" if same else f" ({_percent(comparison.chance, name)})"
        return _percent(comparison.similarity, name) + chance

    for label, comparison in rows:
        table.add_row(label, *(cell(comparison, name) for name in names))
    if same:
        table.add_section()
        table.add_row("by chance", *(_percent(rows[0][1].chance, name) for name in names))
    else:
        table.caption = "In brackets: what two random plans of these shapes agree on."
    return table


def _percent(shares: Mapping[str, float], name: str) -> str:
    return f"{shares[name]:.1%}" if name in shares else "-"
