"""What `drprune plan` prints."""

from rich.table import Table

from drpruning.common.console import make_table, plain_console
from drpruning.models.memory import SHARDED_OVER, MemoryEstimate
from drpruning.pipeline.domain_plans import DomainPlan
from drpruning.pipeline.preflight import RunPlan
from drpruning.pipeline.teachers import step_ratio
from drpruning.pruning import ModelShape, Proposal
from drpruning.pruning.shapes import PRUNABLE_LABELS
from drpruning.recipe import Recipe
from drpruning.runs.policy import reference_text

MEMORY_NOTE = (
    "(estimated for one micro-batch, good to a tenth for Llama-like models; the device's own "
    "gigabyte and fragmentation come on top; {})"
)
PARALLELISM_NOTES = {
    "fsdp2": "on several GPUs this recipe shards, on one it does not",
    "ddp": "this recipe shards with training.parallelism: fsdp2 only",
}


def _shapes(plan: RunPlan) -> Table:
    shapes: dict[str, ModelShape] = {}
    if plan.source:
        shapes["source"] = plan.source
    if plan.target:
        shapes["target"] = plan.target
    headers = [*shapes, "target/source"] if len(shapes) > 1 else [*shapes]
    table = make_table("shape", *headers)
    rows = PRUNABLE_LABELS | {"head_dim": "head dimension", "vocab_size": "vocabulary"}
    for attribute, name in rows.items():
        table.add_row(name, *_with_ratio([getattr(s, attribute) for s in shapes.values()]))
    total = [s.num_parameters() for s in shapes.values()]
    embedding = [s.num_embedding_parameters() for s in shapes.values()]
    rest = [t - e for t, e in zip(total, embedding, strict=True)]
    for name, counts in (("parameters", total), ("  embedding", embedding), ("  rest", rest)):
        table.add_row(name, *_with_ratio(counts))
    return table


def _with_ratio(values: list[int]) -> list[str]:
    ratio = [f"{values[1] / values[0]:.3f}"] if len(values) > 1 else []
    return [f"{value:,}" for value in values] + ratio


def proposals_table(proposals: list[Proposal], *, numbered: bool = False) -> Table:
    """The shapes that are proposed for a number of parameters.

    Args:
        proposals: The best first.
        numbered: Whether one is still to be chosen; else the first is marked as taken.
    """
    table = make_table("proposed", "layers", "hidden", "intermediate", "heads", "parameters")
    table.add_column("why")
    for position, proposal in enumerate(proposals):
        shape = proposal.shape
        heads = f"{shape.num_heads}"
        if shape.num_heads != shape.num_kv_heads:
            heads += f"/{shape.num_kv_heads}"
        table.add_row(
            f"{position + 1}" if numbered else "taken" if position == 0 else "",
            f"{shape.num_layers}",
            f"{shape.hidden_size:,}",
            f"{shape.intermediate_size:,}",
            heads,
            f"{shape.num_parameters():,}",
            proposal.reason,
        )
    return table


def _phases(recipe: Recipe, plan: RunPlan) -> Table:
    table = make_table("phase", "steps", "tokens", "evaluations", "ratio updates")
    for name, phase in recipe.phases.items():
        tokens = phase.steps * phase.global_batch * recipe.data.sequence_length
        evaluations = plan.evaluations[name]
        table.add_row(
            name,
            f"{phase.steps:,}",
            f"{tokens:,}",
            f"{evaluations:,}",
            f"{evaluations:,}",
        )
    return table


def _memory(plan: RunPlan, parallelism: str) -> Table:
    """The memory that the recipe's parallelism takes, then that of the other one."""
    table = make_table("GiB per GPU", *_columns(parallelism))
    for phase, memory in plan.memory.items():
        sizes = _in_order(memory, parallelism)
        table.add_row(phase, *(f"{size / 2**30:.1f}" for size in sizes))
        for teacher in plan.teachers.get(phase, []):
            own = zip(_in_order(teacher.memory, parallelism), sizes, strict=True)
            shares = (f"{part / 2**30:.1f} ({part / size:.0%})" for part, size in own)
            table.add_row(f"  teacher {teacher.name}", *shares)
    return table


def _columns(parallelism: str) -> list[str]:
    columns = [f"sharded over {count}" for count in SHARDED_OVER if count > 1]
    columns.insert(len(columns) if parallelism == "fsdp2" else 0, "whole on each")
    return columns


def _in_order(memory: MemoryEstimate, parallelism: str) -> list[int]:
    """The bytes in the order of the columns."""
    sizes = [memory.sharded[count] for count in SHARDED_OVER if count > 1]
    sizes.insert(len(sizes) if parallelism == "fsdp2" else 0, memory.whole)
    return sizes


def _teacher_lines(recipe: Recipe, plan: RunPlan) -> list[str]:
    """Who teaches in each phase, and how much longer a step takes."""
    lines = []
    for phase, teachers in plan.teachers.items():
        distill = recipe.distillation(phase)
        if not teachers or distill is None:
            continue
        named = ", ".join(f"{t.name} ({t.shape.num_parameters():,} parameters)" for t in teachers)
        ratio = step_ratio(plan.student(phase), teachers, recipe.training)
        cached = "; less where the cache has the teacher's tokens" if distill.cache else ""
        lines.append(
            f"{phase}: taught by {named}; a step takes about {ratio:.1f} times as long as without, "
            f"by multiply-adds{cached}"
        )
    return lines


def _available(domain: DomainPlan) -> str:
    if not domain.share:
        return "only evaluated"
    if domain.available is None:
        return "not known yet"
    return f"{domain.available:,}" if domain.exact else f"about {domain.available:,}"


def _epochs(domain: DomainPlan) -> str:
    if not domain.share:
        return ""
    return "?" if domain.epochs is None else f"{domain.epochs:.2f}"


def _domains(plan: RunPlan) -> Table:
    table = make_table(
        "domain", "share", "tokens planned", "tokens available", "epochs", "exhausted at"
    )
    for name, domain in plan.domains.items():
        exhausted = domain.exhausted_at
        table.add_row(
            name,
            f"{100 * domain.share:.2f}%",
            f"{domain.planned:,}",
            _available(domain),
            _epochs(domain),
            f"{exhausted[0]} step {exhausted[1]:,}" if exhausted else "",
        )
    return table


def _schedule_lines(recipe: Recipe, plan: RunPlan) -> list[str]:
    """Where reference losses and the first ratio come from."""
    scheduling = recipe.scheduling
    final = plan.target or plan.source
    size = final.num_parameters() if final else None
    texts = {p: reference_text(recipe, p, plan.reference_models, size) for p in recipe.phases}
    lines = [f"{phase}: reference losses: {text}" for phase, text in texts.items() if text]
    if scheduling.start is not None and scheduling.start.ratio is not None:
        shares = ", ".join(f"{n} {100 * s:.2f}%" for n, s in scheduling.start.ratio.items())
        given = recipe.reference_origin is not None
        replaced = {"drpruning": given, "naive_dro": True, "cvar": True, "equal": True}
        note = "; the evaluation at step 0 replaces it" if replaced.get(scheduling.policy) else ""
        lines.append(f"first ratio: {shares} (scheduling.start){note}")
    return lines


def print_plan(recipe: Recipe, plan: RunPlan, title: str = "") -> None:
    """Print shapes, phases, domains and warnings; problems are the caller's to show.

    Args:
        recipe: What is planned.
        plan: The outcome.
        title: Stands above it, where it is one of several.
    """
    console = plain_console()
    if title:
        console.print(title, style="bold", markup=False, soft_wrap=True)
    for proposals in plan.proposals.values():
        console.print(proposals_table(proposals))
    if plan.source:
        console.print(_shapes(plan))
    console.print(_phases(recipe, plan))
    if plan.memory:
        parallelism = recipe.training.parallelism
        console.print(_memory(plan, parallelism))
        console.print(MEMORY_NOTE.format(PARALLELISM_NOTES[parallelism]), soft_wrap=True)
    if plan.domains:
        console.print(_domains(plan))
    if recipe.model.revision is not None:
        console.print(f"source: {recipe.model.reference}", markup=False, soft_wrap=True)
    if plan.documents:
        console.print(plan.documents, markup=False, soft_wrap=True)
    for line in _teacher_lines(recipe, plan) + _schedule_lines(recipe, plan):
        console.print(line, markup=False, soft_wrap=True)
    for warning in (*plan.warnings, *plan.data_warnings):
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
