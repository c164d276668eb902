"""drprune: the commands that help to write a recipe. Heavy imports happen inside."""

from pathlib import Path
from typing import Annotated

import typer

from drpruning.cli.app import command


@command(
    "drprune init     asks\n"
    "drprune init small.yaml --model models/base --domain text --params 1.3B --yes\n"
    "drprune init --model org/model --domain web=text/web --domain code=text/code.jsonl"
)
def init(
    recipe: Annotated[
        Path, typer.Argument(help="The recipe to be written.", metavar="[RECIPE]")
    ] = Path("recipe.yaml"),
    *,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A model folder, or a name on the Hub.")
    ] = None,
    domains: Annotated[
        list[str] | None,
        typer.Option(
            "--domain",
            metavar="[NAME=]PATH",
            help="Text of a domain; may be given several times. A folder without a name gives a "
            "domain for each subfolder or file in it.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "--params",
            metavar="TARGET",
            help="A number of parameters such as 1.3B, a shape such as '{num_layers: 24}', a model "
            "of that shape, or none.",
        ),
    ] = None,
    prune_steps: Annotated[int | None, typer.Option(min=1, help="Steps of pruning.")] = None,
    pretrain_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of training after it.")
    ] = None,
    output: Annotated[str | None, typer.Option(metavar="FOLDER", help="The run folder.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Take the proposal for what is not given.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing recipe.")] = False,
) -> None:
    """Ask for a model and text, and write a recipe with every choice explained.

    Each question has a flag. Needs no torch.
    """
    from drpruning.cli.init import Flags, make_recipe

    steps = {"prune": prune_steps, "pretrain": pretrain_steps}
    make_recipe(recipe, Flags(model, domains or [], target, steps, output, yes), force=force)


@command(
    "drprune schema\n"
    "drprune schema -o recipe.schema.json\n"
    "# yaml-language-server: $schema=recipe.schema.json     the first line of a recipe"
)
def schema(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The file; default: standard output."),
    ] = None,
) -> None:
    """Write the JSON schema of recipes, by which editors complete and check them.

    Needs no torch.
    """
    from drpruning.recipe.json_schema import schema_text, write_schema

    if output is None:
        typer.echo(schema_text(), nl=False)
        return
    write_schema(output)
    typer.echo(f"schema: {output}")
