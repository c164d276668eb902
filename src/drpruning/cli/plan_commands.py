"""drprune: the commands on pruning plans. Heavy imports happen inside."""

from pathlib import Path
from typing import Annotated

import typer

from drpruning.cli.app import command, expand_home


@command(
    "drprune show-plan runs/a\n"
    "drprune show-plan runs/a/prune/plan.json --layers     names the heads of each layer"
)
def show_plan(
    plan: Annotated[
        Path,
        typer.Argument(
            metavar="PLAN_OR_RUN", help="A plan.json, a run folder, or a model in a run folder."
        ),
    ],
    *,
    layers: Annotated[
        bool, typer.Option("--layers", help="Also name the heads that each layer keeps.")
    ] = False,
) -> None:
    """Show what a pruning plan keeps: shapes before and after, layers, heads, dimensions.

    Needs no torch.
    """
    from drpruning.cli.pruning_plan_tables import print_pruning_plan
    from drpruning.runs.plans import find_plan

    print_pruning_plan(find_plan(plan), layers=layers)


@command(
    "drprune compare-plans runs/a runs/b runs/c     every pair\n"
    "drprune compare-plans runs/a     the plan at each evaluation with the final one\n"
    "drprune compare-plans runs/a/prune/plan.json runs/b --json"
)
def compare_plans(
    plans: Annotated[
        list[Path],
        typer.Argument(
            metavar="PLAN_OR_RUN", help="As show-plan takes them; or one run folder alone."
        ),
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show on which share of the decisions plans agree, and what chance would give.

    As in the paper's Appendix B.1: layers, hidden dimensions, heads and
    feed-forward dimensions of the source that both keep or both remove; what
    lies in a removed layer counts as removed. Needs no torch.
    """
    from dataclasses import asdict

    from drpruning.cli.pruning_plan_tables import print_comparisons, print_history
    from drpruning.common.files import dumps
    from drpruning.runs.plans import compare_files

    found = compare_files(plans)
    if as_json:
        typer.echo(dumps([asdict(comparison) for comparison in found], indent=1))
    elif len(plans) == 1:
        print_history(found)
    else:
        print_comparisons(found)


@command(
    "drprune apply-plan runs/a/prune/plan.json path/to/model smaller-model\n"
    "drprune apply-plan runs/a meta-llama/Llama-2-7b-hf smaller-model"
)
def apply_plan(
    plan: Annotated[Path, typer.Argument(metavar="PLAN_OR_RUN", help="As show-plan takes it.")],
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model of the shape that the plan cuts: a folder, or a name on the Hub; "
            "safetensors only.",
        ),
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="The folder to write; new, or empty.")
    ],
) -> None:
    """Cut a model by a plan and write a Hugging Face folder with tokenizer and model card.

    Weights are cut, not rescaled, and keep the type they have in the model's
    files. The soft values of learned masks are folded into the weights by
    `drprune prune` alone, and its weights were trained with the masks: its own
    result is another model than its plan applied to the source, and a better one.
    """
    from drpruning.pipeline.apply_plan import cut_model

    cut_model(plan, expand_home(model), output)
