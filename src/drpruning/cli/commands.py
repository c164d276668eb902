"""drprune: one thin function a command. Heavy imports happen inside."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from drpruning import __version__
from drpruning.cli import recipe_commands  # noqa: F401 - registers them, the first in the help
from drpruning.cli.app import app, command
from drpruning.cli.task_options import Limit, ScoresFolder, TaskPath
from drpruning.common.errors import BadInput

__all__ = ["app"]

RecipeFile = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", metavar="RECIPE")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY.PATH=VALUE",
        help="Change a field of the recipe; may be given several times. The value is YAML; a key "
        "with a dot in it stands in quotes.",
    ),
]
Plain = Annotated[
    bool,
    typer.Option("--plain", help="Print lines on a terminal too, in place of a live view."),
]


def _starting_with(start: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(start)]


def _complete_policy(incomplete: str) -> list[str]:
    from drpruning.recipe.scheduling import DEFAULTS

    return _starting_with(incomplete, DEFAULTS)


def _complete_phase(incomplete: str) -> list[str]:
    from drpruning.recipe.phases import PHASES

    return _starting_with(incomplete, PHASES)


def _show_version(value: bool) -> None:  # noqa: FBT001 - typer's callback signature
    if value:
        typer.echo(f"drprune {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Prune a language model to an exact shape and steer its data while it recovers.

    Exit status: 0 done, 2 bad input, 130 interrupted after saving, 1 anything else.
    """


def _run(recipe: Path, overrides: list[str] | None, *stages: str, plain: bool) -> None:
    from drpruning.runs.folder import open_recipe

    parsed = open_recipe(recipe, overrides or [])
    from drpruning.pipeline.targets import run_recipe

    run_recipe(parsed, " ".join(sys.argv), stages, plain=plain)


@command("drprune run recipe.yaml\ndrprune run recipe.yaml --set output=runs/second")
def run(recipe: RecipeFile, overrides: Overrides = None, *, plain: Plain = False) -> None:
    """Do everything: prepare, prune, pretrain, evaluate, report. Resumes where it stopped."""
    _run(recipe, overrides, "prepare", "prune", "pretrain", "evaluate", "report", plain=plain)


@command(
    "drprune plan recipe.yaml\n"
    "drprune plan recipe.yaml --set prune.steps=1600\n"
    "drprune plan recipe.yaml --time     also runs a few steps, and says how long it will take"
)
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    *,
    time: Annotated[
        bool,
        typer.Option(
            "--time",
            help="Load the model, run a few steps of each phase on random tokens, and estimate how "
            "long each stage will take on this machine.",
        ),
    ] = False,
    time_steps: Annotated[
        int, typer.Option(min=1, help="Steps that --time takes the time of, after a first one.")
    ] = 3,
) -> None:
    """Say what a recipe will do and what in it cannot work, without loading weights."""
    from drpruning.cli.run_plan_tables import print_plan
    from drpruning.pipeline.targets import plan_recipe
    from drpruning.runs.folder import open_recipe

    outcome = plan_recipe(open_recipe(recipe, overrides or []))
    for title, part in outcome.plans.items():
        print_plan(part.recipe, part, title)
    if outcome.problems:
        raise BadInput("\n".join(outcome.problems))
    if time:
        from drpruning.cli.time_tables import print_times
        from drpruning.pipeline.timing import time_recipe

        print_times(time_recipe(outcome, time_steps), time_steps)


@command("drprune prepare recipe.yaml\ndrprune prepare recipe.yaml --set data.workers=8")
def prepare(recipe: RecipeFile, overrides: Overrides = None, *, plain: Plain = False) -> None:
    """Tokenize the domains into blocks."""
    _run(recipe, overrides, "prepare", plain=plain)


@command("drprune prune recipe.yaml\ndrprune prune recipe.yaml --set prune.mask_samples=8")
def prune(recipe: RecipeFile, overrides: Overrides = None, *, plain: Plain = False) -> None:
    """Train the masks and cut the model to its target shape (prepares the data if needed)."""
    _run(recipe, overrides, "prepare", "prune", plain=plain)


@command("drprune pretrain recipe.yaml")
def pretrain(recipe: RecipeFile, overrides: Overrides = None, *, plain: Plain = False) -> None:
    """Continue pretraining of the pruned model, or of the source where nothing is pruned."""
    _run(recipe, overrides, "prepare", "pretrain", plain=plain)


@command(
    "drprune evaluate runs/a runs/b\n"
    "drprune evaluate path/to/model --data runs/a     a model on a run's validation blocks\n"
    "drprune evaluate runs/a --tasks paper-15,gsm8k@8     also tasks of lm-eval\n"
    "drprune evaluate path/to/model --tasks hellaswag --limit 200 --output scores\n"
    "drprune evaluate runs/a --json numbers.json     everything that was measured, as a file\n"
    "drprune evaluate runs/a --speed     also tokens per second and memory, against the source"
)
def evaluate(
    targets: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_MODEL...",
            help="Run folders; with --data also model folders and names on the Hub.",
        ),
    ],
    data: Annotated[
        Path | None, typer.Option(help="The run whose validation blocks models are measured on.")
    ] = None,
    *,
    again: Annotated[
        bool, typer.Option("--again", help="Measure models that have been measured, too.")
    ] = False,
    speed: Annotated[
        bool,
        typer.Option(
            "--speed",
            help="Also measure tokens per second of reading a prompt and of writing, and peak "
            "memory, each model in turn with the source.",
        ),
    ] = False,
    numbers: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write everything as JSON."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="TASK,...",
            help="Also measure on tasks of lm-eval: NAME, NAME@EXAMPLES, or a group: paper-15, "
            "paper-multilingual.",
        ),
    ] = None,
    limit: Limit = None,
    task_path: TaskPath = None,
    output: ScoresFolder = None,
) -> None:
    """Measure perplexity by domain: of all models of a run, or of a model on a run's data.

    Prints one table with 95% intervals. What has been measured on the same blocks is not measured
    again while the model's files stay as they are.

    With --tasks also scores on tasks of lm-eval; a model needs no run for these.
    """
    from drpruning.pipeline.evaluation import evaluate_targets
    from drpruning.pipeline.targets import run_folders
    from drpruning.runs.folder import RunFolder

    folders = run_folders(targets)
    if tasks is None or data is not None or any(RunFolder(each).has_recipe for each in folders):
        evaluate_targets(folders, data, again=again, speed=speed, output=numbers)
    if tasks is not None:
        from drpruning.pipeline.task_command import TaskOptions, evaluate_tasks

        evaluate_tasks(
            folders,
            TaskOptions(tasks=tasks, limit=limit, task_path=task_path, data=data, output=output),
        )


@command(
    "drprune report runs/a\n"
    "drprune report runs/a runs/b --output compare.html     several runs on one page\n"
    "drprune report runs/a --figures figures     its figures and tables as files, too\n"
    "drprune report runs/a --figures figures --png     the figures as PNG beside the SVG"
)
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    output: Annotated[
        Path | None, typer.Option(help="The page; default: report.html in the first run folder.")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="For the figures as SVG and the tables as CSV and LaTeX."
        ),
    ] = None,
    *,
    png: Annotated[
        bool, typer.Option("--png", help="With --figures: the figures as PNG, too (takes longer).")
    ] = False,
) -> None:
    """Write one HTML page about one or several runs, also while they are running."""
    from drpruning.pipeline.targets import run_folders
    from drpruning.report import write_report
    from drpruning.runs.folder import RunFolder

    page = write_report(run_folders(runs), output or RunFolder(runs[0]).report, figures, png=png)
    typer.echo(f"report: {page}")
    if figures is not None:
        typer.echo(f"figures and tables: {figures}")


@command(
    "drprune watch runs/a\n"
    "drprune watch runs/a --every 10\n"
    "drprune watch runs/a --once     print it once, as where standard output is no terminal"
)
def watch(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run folder, also of several targets, or where one will be.",
        ),
    ],
    *,
    once: Annotated[bool, typer.Option("--once", help="Print the view once and leave.")] = False,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Time between two looks.")
    ] = 2.0,
) -> None:
    """Show how a run is doing, live, from another terminal; leaves when it is finished.

    Reads the files of the run folder and changes nothing. Needs no torch.
    """
    from drpruning.cli.watch import watch_run

    watch_run(run, once=once, every=every)


@command(
    "drprune replay runs/a     the run's own policy: gives its ratio again\n"
    "drprune replay runs/a --policy group_dro\n"
    "drprune replay runs/a --set rho=0.2 --set bound=3 --output replay.html"
)
def replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder; it stays as it is.")],
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Another policy; default: the run's.",
            autocompletion=_complete_policy,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting, named as in the recipe's section scheduling; may be given several "
            "times. The value is YAML.",
        ),
    ] = None,
    phases: Annotated[
        list[str] | None,
        typer.Option(
            "--phase",
            metavar="PHASE",
            help="prune or pretrain; may be given several times. Default: all there are.",
            autocompletion=_complete_phase,
        ),
    ] = None,
    outputs: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="Also write a page with figures (.html) or every number (.json); may be given "
            "several times.",
        ),
    ] = None,
) -> None:
    """Show which data ratio another policy or setting would have given for a run's losses.

    The losses stay those of the run as it was: this is what the policy would
    have decided at each evaluation, not what training under it would have
    given. Needs no GPU and no torch; a page needs matplotlib and jinja2.
    """
    from drpruning.cli.replay_tables import check_outputs, print_replay, write_replay
    from drpruning.common.console import Reporter
    from drpruning.runs.replay import replay_run

    files = outputs or []
    check_outputs(files)
    replayed = replay_run(run, policy, settings or [], phases or None, Reporter())
    print_replay(replayed)
    write_replay(replayed, files)
    for file in files:
        typer.echo(f"replay: {file}")


@command(
    "drprune reference-loss recipe.yaml     the models that the recipe names\n"
    "drprune reference-loss recipe.yaml --model large-model\n"
    "drprune reference-loss runs/a --model 7b --model 13b --model 70b --params 2700000000\n"
    "drprune reference-loss recipe.yaml --model large-model --output start.yaml"
)
def reference_loss(
    target: Annotated[
        Path, typer.Argument(metavar="RECIPE_OR_RUN", help="A recipe or a run folder.")
    ],
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="A model's own losses; given three times or more, the law over these sizes. "
            "Default: the models of the recipe.",
        ),
    ] = None,
    overrides: Overrides = None,
    parameters: Annotated[
        int | None,
        typer.Option(
            "--params", min=1, help="Read the law off at this size; default: the target's."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The file, for scheduling.start; default: reference-loss.yaml in the run folder, "
            "RECIPE.reference-loss.yaml beside a recipe."
        ),
    ] = None,
) -> None:
    """Measure and save reference losses: of a model, or by the scaling law over several sizes.

    Prepares the data of a recipe if needed, and begins nothing else of its run.
    """
    from drpruning.cli.reference_loss import compute_reference_losses

    compute_reference_losses(target, models or [], overrides or [], parameters, output)


@command(
    "drprune export-schedule runs/a\n"
    "drprune export-schedule runs/a --phase prune --output found.yaml\n"
    "drprune run other.yaml --set scheduling.start=runs/a/start.yaml"
)
def export_schedule(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    phase: Annotated[
        str | None,
        typer.Option(
            metavar="PHASE",
            help="prune or pretrain; default: the last one.",
            autocompletion=_complete_phase,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The file; default: start.yaml in the run folder.")
    ] = None,
) -> None:
    """Save the reference losses and ratios that a run has found, for another recipe to start from.

    Needs no torch.
    """
    from drpruning.runs.folder import RunFolder
    from drpruning.runs.schedule_start import (
        export_schedule,
        next_command,
        start_text,
        write_start,
    )

    found = export_schedule(run, phase)
    file = output or RunFolder(run).start
    write_start(file, found.start, found.comments)
    typer.echo(start_text(found.start, found.comments))
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(next_command(file))


@command("drprune demo\ndrprune demo --output /tmp/demo")
def demo(
    output: Annotated[Path, typer.Option(help="Folder of the demo's runs.")] = Path("runs/demo"),
) -> None:
    """Train, prune and recover a small model on text from this Python installation, offline."""
    from drpruning.pipeline.demo import run_demo

    run_demo(output)


from drpruning.cli import compare, plan_commands  # noqa: E402, F401 - registers them, last in the help
