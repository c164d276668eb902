"""What was measured of a run's models, in the model cards that lie beside them."""

from dataclasses import replace
from pathlib import Path

from drpruning.common.files import atomic_write
from drpruning.models.auxiliary_files import CARD
from drpruning.models.card import markdown_table, with_results
from drpruning.report.results import measured_on, result_columns
from drpruning.report.table import results_table
from drpruning.report.task_scores import scored_models, task_rows
from drpruning.runs.folder import MODEL, PRUNED, SOURCE
from drpruning.runs.records import RunRecord, load_run

_COLUMNS = {PRUNED: (SOURCE, PRUNED), MODEL: (SOURCE, PRUNED, MODEL)}
"""Model -> those that its card compares, itself the last."""


def write_card_results(folder: Path) -> list[str]:
    """Put the latest evaluations of a run into the model cards of its models.

    Only the text between the two marks is replaced; a card without them is somebody's own and stays
    as it is.

    Returns:
        A warning for each card that cannot be read or written.

    Raises:
        BadInput: A file of the run folder cannot be read.
    """
    run = load_run(folder)
    warnings = []
    for name, compared in _COLUMNS.items():
        card = run.folder / name / CARD
        if name not in run.evaluations or not card.is_file():
            continue
        found = {n: e for n, e in run.evaluations.items() if n in compared}
        try:
            before = card.read_text(encoding="utf-8")
            after = with_results(before, card_results(replace(run, evaluations=found)))
            if after != before:
                atomic_write(card, after)
        except (OSError, UnicodeDecodeError) as error:
            warnings.append(f"{card}: cannot be updated with the results: {error}")
    return warnings


def card_results(run: RunRecord) -> str:
    """Perplexities and scores of the models of a run as the tables of a model card."""
    table = results_table([run])
    columns = result_columns(table)
    rows = [
        [name, *(column.cells[index].ratio for column in columns)]
        for index, name in enumerate(table.columns)
    ]
    head = ["domain", *(column.head for column in columns)]
    parts = [markdown_table(head, rows), measured_on([run])]
    models = [m for m in scored_models([("", run)]) if m.stage in run.evaluations]
    if models:
        scores = [
            [title, *(f"{cell.ratio} {cell.note}" for cell in cells)]
            for rows_of_tasks in task_rows(models)
            for title, cells in rows_of_tasks
        ]
        head = ["task", *(model.name for model in models)]
        parts += [markdown_table(head, scores), "Scores from 0 to 1 in percent, ± standard error."]
    return "\n\n".join(parts)
