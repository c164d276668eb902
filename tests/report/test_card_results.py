"""What was measured stands in the model cards, and nothing else in them changes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drpruning.models.card import RESULTS_BEGIN, RESULTS_END
from drpruning.report.card_results import write_card_results
from drpruning.runs.records import load_run

MakeRun = Callable[..., Any]
BEFORE, AFTER = "---\nlicense: mit\n---\n\n# Mine\n\n", "\n\n## Licence\n"
CARD = f"{BEFORE}{RESULTS_BEGIN}\nNot measured yet.\n{RESULTS_END}{AFTER}"


@pytest.fixture
def run(fake_run: MakeRun) -> Any:
    made = fake_run("run", ["web", "code|c"])
    made.recipe()
    made.evaluations()
    for name in ("pruned", "model"):
        (made.folder / name).mkdir()
        (made.folder / name / "README.md").write_text(CARD)
    return made


def test_cards_have_the_perplexities_up_to_their_own_model(run: Any) -> None:
    assert write_card_results(run.folder) == []
    found = load_run(run.folder).evaluations
    pruned, model = ((run.folder / n / "README.md").read_text() for n in ("pruned", "model"))
    for card in (pruned, model):
        assert card.startswith(BEFORE + RESULTS_BEGIN)
        assert card.endswith(RESULTS_END + AFTER)
        assert "Measured on 48 blocks of 256 tokens per domain." in card
    assert "| domain | source | as cut | times the source |" in pruned
    assert "| domain | source | as cut | recovered | times the source |" in model
    values = [found[name].perplexity["web"] for name in ("source", "pruned", "model")]
    cells = [f"{value:.2f}" for value in values]
    assert f"| web | {' | '.join(cells)} | {values[2] / values[0]:.2f}× |" in model
    assert r"| code\|c |" in model
    assert "| average |" in model


def test_cards_are_written_again_only_where_something_changed(run: Any) -> None:
    write_card_results(run.folder)
    card = run.folder / "model" / "README.md"
    before = card.stat()
    assert write_card_results(run.folder) == []
    assert card.stat() == before
    file = run.folder / "evaluation" / "model.json"
    content = json.loads(file.read_text())
    content["perplexity"]["web"] = 99.5
    file.write_text(json.dumps(content))
    write_card_results(run.folder)
    assert "| 99.50 |" in card.read_text()
    assert card.read_text().count(RESULTS_BEGIN) == 1


def test_somebodys_own_card_stays_and_a_missing_one_is_not_made(run: Any) -> None:
    own = {"pruned": b"# mine\n", "model": b"\xff\xfe not text"}
    for name, content in own.items():
        (run.folder / name / "README.md").write_bytes(content)
    (warning,) = write_card_results(run.folder)
    assert "model/README.md: cannot be updated" in warning
    for name, content in own.items():
        assert (run.folder / name / "README.md").read_bytes() == content
    (run.folder / "model" / "README.md").unlink()
    assert write_card_results(run.folder) == []
    assert list((run.folder / "model").iterdir()) == []


def test_a_model_that_was_not_measured_keeps_its_card(run: Any) -> None:
    (run.folder / "evaluation" / "model.json").unlink()
    write_card_results(run.folder)
    assert Path(run.folder / "model" / "README.md").read_text() == CARD
