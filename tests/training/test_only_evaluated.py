"""A domain of share 0 through a complete run: its losses are everywhere, its share nowhere."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from drpruning.cli.commands import app
from drpruning.common.errors import BadInput, Interrupted
from drpruning.data import PreparedData
from drpruning.pipeline.run import STAGES, Run
from drpruning.recipe import load_recipe, parse_recipe
from drpruning.runs.records import load_run
from drpruning.runs.replay import replay_run
from drpruning.runs.schedule_start import export_schedule
from drpruning.training.messages import evaluation_warnings
from drpruning.training.trainer import Trainer
from helpers.small_recipe import small_recipe

TIMES = {"time", "tokens_per_second", "evaluation_seconds", "update_seconds", "total_seconds"}
REFERENCE = {"numbers": 1.5, "colours": 1.2}


def values_of(
    model: Path, text: Path, folder: Path, extra: dict[str, Any] | None
) -> dict[str, Any]:
    """A short run on two domains, and on a third one before them if there is one."""
    values = small_recipe(model, text, folder)
    shares = {"numbers": 0.6, "colours": 0.4}
    domains = {name: {"source": f"{name}.jsonl", "share": s} for name, s in shares.items()}
    values["data"]["domains"] = ({} if extra is None else {"animals": extra}) | domains
    values["scheduling"] = {"reference_loss": dict(REFERENCE), "floor": 0.1}
    values["prune"] |= {"steps": 8, "evaluate_every": 2}
    values["pretrain"] |= {"steps": 6, "evaluate_every": 2}
    return values


def run(values: dict[str, Any]) -> Path:
    with Run(parse_recipe(values)).session("test") as this:
        this.run(STAGES)
    return this.folder


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, text_folder: Path
) -> tuple[Path, Path]:
    """The same run with a domain that is only evaluated, and without it."""
    home = tmp_path_factory.mktemp("only_evaluated")
    extra = {"source": "animals.jsonl", "share": 0}
    values = values_of(model_folder, text_folder, home / "with", extra)
    values["scheduling"]["reference_loss"]["animals"] = 1.25
    return run(values), run(values_of(model_folder, text_folder, home / "without", None))


def test_what_is_trained_is_what_is_trained_without_it(folders: tuple[Path, Path]) -> None:
    """Bit for bit, though the domain stands before the others."""
    one, other = (metrics(folder) for folder in folders)
    for record in one:
        if record["kind"] == "eval":
            assert record["loss"].pop("animals") > 0
            assert record["reference_loss"].pop("animals") == 1.25
    assert one == other
    for model in ("pruned", "model"):
        weights = [(folder / model / "model.safetensors").read_bytes() for folder in folders]
        assert weights[0] == weights[1]


def test_it_has_validation_blocks_and_no_others(folders: tuple[Path, Path]) -> None:
    data = PreparedData.open(folders[0] / "data")
    animals = data.domains["animals"]
    assert (len(animals.train), len(animals.validation)) == (0, 6)
    assert animals.counts.documents == 120
    assert data.overlap_warnings() == []


def test_evaluations_and_report_show_it(folders: tuple[Path, Path]) -> None:
    record = load_run(folders[0])
    assert record.untrained == ["animals"]
    assert record.initial_ratio == {"numbers": 0.6, "colours": 0.4}
    for evaluation in record.evaluations.values():
        assert set(evaluation.loss) == {"animals", "numbers", "colours"}
    page = (folders[0] / "report.html").read_text()
    assert page.count('<td colspan="3">only evaluated</td>') == 2
    assert "on 2 domains; 1 more only evaluated." in page
    assert re.search(r'id="run1-perplexity-\d+-loss-animals"', page)
    assert not re.search(r'id="run1-ratio-\d+-line-animals"', page)
    assert re.search(r'id="run1-ratio-\d+-line-numbers"', page)


def test_replay_and_export_are_of_the_trained_domains(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    replay = replay_run(folders[0])
    assert all(phase.is_identical for phase in replay.phases)
    assert replay.notes == ["only evaluated, so no policy sees their losses: animals"]
    for policy in ("group_dro", "sheared"):
        other = replay_run(folders[0], policy=policy)
        assert list(other.phases[0].points[-1].decision.ratio) == ["numbers", "colours"]
    output = tmp_path / "replay.json"
    result = CliRunner().invoke(app, ["replay", str(folders[0]), "--output", str(output)])
    assert result.exit_code == 0, result.output
    written = json.loads(output.read_text())["phases"]["prune"]["evaluations"]
    assert all(point["loss"]["animals"] > 0 for point in written)

    exported = export_schedule(folders[0])
    assert set(exported.start) == {"ratio", "reference_ratio", "reference_loss"}
    assert all(set(found) == set(REFERENCE) for found in exported.start.values())
    resolved = load_recipe(folders[0] / "recipe.yaml", ["scheduling.reference_loss=null"])
    values = resolved.model_dump(mode="json")
    values["scheduling"]["start"] = exported.start
    assert parse_recipe(values).untrained == ["animals"]


def test_plan_says_that_it_is_only_evaluated(folders: tuple[Path, Path]) -> None:
    result = CliRunner().invoke(app, ["plan", str(folders[0] / "recipe.yaml")])
    assert result.exit_code == 0, result.output
    row = next(line.split() for line in result.output.splitlines() if "animals" in line)
    assert row == ["animals", "0.00%", "0", "only", "evaluated"]


def test_resumed_equals_uninterrupted(
    folders: tuple[Path, Path],
    model_folder: Path,
    text_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extra = {"source": "animals.jsonl", "share": 0}
    values = values_of(model_folder, text_folder, tmp_path / "run", extra)
    values["scheduling"]["reference_loss"]["animals"] = 1.25
    step = Trainer._train_step

    def interrupted(self: Trainer) -> None:
        step(self)
        if self.step == 5:
            self._save(resumable=True)
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", interrupted)
        with pytest.raises(Interrupted):
            run(values)
    assert metrics(run(values)) == metrics(folders[0])


def test_reference_models_are_measured_on_the_trained_domains(
    folders: tuple[Path, Path], model_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    extra = {"source": "animals.jsonl", "share": 0}
    values = values_of(model_folder, text_folder, tmp_path / "run", extra)
    values["data"]["prepared"] = str(folders[0] / "data")
    values["scheduling"]["reference_loss"] = {"from_model": str(model_folder)}
    del values["prune"], values["model"]["target"]
    folder = run(values)
    measured = json.loads((folder / "reference_loss.json").read_text())
    assert set(measured["reference_loss"]) == set(REFERENCE)
    evals = [record for record in metrics(folder) if record["kind"] == "eval"]
    assert all(set(record["reference_loss"]) == set(REFERENCE) for record in evals)
    assert all(set(record["loss"]) == {"animals", *REFERENCE} for record in evals)


def test_data_prepared_for_evaluation_are_not_trained_on(
    folders: tuple[Path, Path], model_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    extra = {"source": "animals.jsonl", "share": 0.5}
    values = values_of(model_folder, text_folder, tmp_path / "run", extra)
    values["data"] |= {"normalise_shares": True, "prepared": str(folders[0] / "data")}
    values["scheduling"]["reference_loss"]["animals"] = 1.25
    with pytest.raises(BadInput, match="whether domain animals is trained on"):
        run(values)


def test_the_ratio_stays_only_for_the_losses_that_it_follows() -> None:
    ratio = {"a": 0.5, "b": 0.5}
    one = evaluation_warnings({"a": 1.0, "b": 2.0, "held": float("inf")}, ratio, {}, None)
    assert one == ["the validation loss of held is inf"]
    two = evaluation_warnings({"a": float("nan"), "b": 2.0, "held": 1.0}, ratio, {}, None)
    assert two == ["the validation loss of a is nan; the ratio stays as it was"]
