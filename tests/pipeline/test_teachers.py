"""Teachers in plans and at the start of a run: what they cost, what is refused, what stays."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drpruning.common.errors import BadInput
from drpruning.models.memory import teacher_memory
from drpruning.pipeline import teachers
from drpruning.pipeline.preflight import RunPlan, plan_run
from drpruning.pipeline.run import Run
from drpruning.pipeline.targets import plan_recipe
from drpruning.pruning import ModelShape
from drpruning.recipe import Distill, Training, parse_recipe
from drpruning.runs.folder import open_recipe
from drpruning.runs.policy import teacher_loss
from drpruning.runs.reference_losses import ReferenceLosses
from helpers.small_runs import drprune, only_pretraining, write


@pytest.fixture
def larger(model_folder: Path, tmp_path: Path) -> str:
    """A model of twice the layers, with the tokenizer of the other one."""
    return made_larger(model_folder, tmp_path / "larger")


def made_larger(model_folder: Path, folder: Path) -> str:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(model_folder)
    config.num_hidden_layers *= 2
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model_folder / name, folder / name)
    return str(folder)


def planned(values: dict[str, Any]) -> RunPlan:
    plan = plan_run(parse_recipe(values))
    assert not plan.problems, plan.problems
    return plan


def test_plan_shows_who_teaches_and_what_it_costs(
    recipe_values: dict[str, Any], larger: str, tmp_path: Path
) -> None:
    recipe_values["prune"]["distill"] = {"teacher": "self"}
    recipe_values["pretrain"]["distill"] = {"teacher": larger}
    text = drprune("plan", write(recipe_values, tmp_path / "r.yaml"))
    count = f"{ModelShape.of(Path(larger)).num_parameters():,}"
    assert "prune: taught by self (" in text
    assert "a step takes about 1.3 times as long as without" in text
    assert f"pretrain: taught by {larger} ({count} parameters); a step takes about" in text
    assert "teacher self" in text
    assert "a smaller model is seldom" not in text
    assert "the losses of the model that is pruned" in text
    assert not Path(recipe_values["output"]).exists()


def test_memory_of_a_phase_is_that_of_the_step_and_of_its_teachers(
    recipe_values: dict[str, Any], larger: str
) -> None:
    recipe_values["pretrain"]["distill"] = "none"
    plain = planned(recipe_values)
    assert not any(plain.teachers.values())
    source = recipe_values["model"]["source"]
    recipe_values["pretrain"]["distill"] = {"teachers": {larger: 1, source: {"numbers": 1}}}
    taught = planned(recipe_values)
    assert taught.memory["prune"] == plain.memory["prune"]
    one, other = taught.teachers["pretrain"]
    assert taught.memory["pretrain"] == plain.memory["pretrain"] + one.memory + other.memory
    assert one.memory.whole > other.memory.whole


def test_a_step_costs_what_is_multiplied() -> None:
    shape = ModelShape.of({"model_type": "llama", "vocab_size": 100, "hidden_size": 64,
                           "intermediate_size": 96, "num_hidden_layers": 3,
                           "num_attention_heads": 4})  # fmt: skip
    distill, training = Distill(), Training()
    memory = teachers._memory(shape, distill, training, 16)
    same = teachers.Teacher("t", shape, memory)
    assert teachers.step_ratio(shape, [], training) == 1
    assert teachers.step_ratio(shape, [same], training) == pytest.approx(4 / 3)
    assert teachers.step_ratio(shape, [same, same], training) == pytest.approx(5 / 3)
    recomputed = Training(gradient_checkpointing=True)
    assert teachers.step_ratio(shape, [same], recomputed) == pytest.approx(5 / 4)
    # Looking up an embedding costs nothing: a tied one is the head, and counts as that.
    tied = replace(shape, tied_embeddings=True)
    assert teachers.step_ratio(tied, [same], training) == pytest.approx(4 / 3)


def test_a_teacher_that_is_smaller_than_the_model_is_warned_of(
    recipe_values: dict[str, Any], larger: str
) -> None:
    values = only_pretraining(recipe_values)
    smaller, values["model"]["source"] = values["model"]["source"], larger
    values["pretrain"]["distill"] = {"teacher": smaller}
    assert any(f"the teacher {smaller} has" in line for line in planned(values).warnings)


def test_a_teacher_that_multiplies_the_time_of_a_step_is_warned_of(
    recipe_values: dict[str, Any], larger: str
) -> None:
    assert not any("times as long" in line for line in planned(recipe_values).warnings)
    recipe_values["pretrain"]["distill"] = {"teacher": larger}
    found = [line for line in planned(recipe_values).warnings if "times as long" in line]
    assert len(found) == 1
    assert found[0].startswith("pretrain.distill: a step takes about ")


def test_a_shape_alone_can_be_planned_with_its_teacher(
    recipe_values: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    config = json.loads((model_folder / "config.json").read_text())
    recipe_values["model"] = {"shape": config, "target": recipe_values["model"]["target"]}
    recipe_values["pretrain"]["distill"] = {}
    text = drprune("plan", write(recipe_values, tmp_path / "r.yaml"))
    assert "pretrain: taught by model.shape (" in text


@pytest.mark.parametrize("tokenizer", ["own", "another"])
def test_every_target_of_a_chain_is_taught_by_the_first_model(
    recipe_values: dict[str, Any], model_folder: Path, tmp_path: Path, tokenizer: str
) -> None:
    source, model = recipe_values["model"]["source"], recipe_values["model"]
    model["targets"] = {"large": {"num_layers": 2}, "small": model.pop("target")}
    if tokenizer == "another":
        other = shutil.copytree(model_folder, tmp_path / "other")
        text = (other / "tokenizer.json").read_text()
        (other / "tokenizer.json").write_text(text.replace('"green"', '"orange"'))
        model["tokenizer"] = str(other)
    recipe_values["prune"]["distill"] = {"teacher": "self"}
    recipe_values["pretrain"]["distill"] = {"weight": 0.5}
    plan = plan_recipe(parse_recipe(recipe_values))
    assert not plan.problems
    large, small = plan.plans.values()
    assert small.recipe.model.source != source
    for part in (large, small):
        assert list(part.recipe.teachers("pretrain")) == [source]
        assert list(part.recipe.teachers("prune")) == ["self"]
        distill = part.recipe.distillation("pretrain")
        assert distill is not None
        assert distill.weight == 0.5


def test_in_a_chain_the_losses_of_the_first_model_are_the_teachers(
    recipe_values: dict[str, Any], larger: str
) -> None:
    model = recipe_values["model"]
    model["targets"] = {"large": {"num_layers": 2}, "small": model.pop("target")}
    first, second = (p.recipe for p in plan_recipe(parse_recipe(recipe_values)).plans.values())
    losses = {"numbers": 2.0, "colours": 1.5, "animals": 1.0}
    measured = ReferenceLosses.of_pruned_model(model["source"], 1000, losses)
    for own in (first, second):
        Path(own.output).mkdir(parents=True)
        (Path(own.output) / "recipe.yaml").write_text(own.to_yaml())
    assert teacher_loss(second, "pretrain") == {}
    measured.write(Path(first.output))
    for own in (first, second):
        assert teacher_loss(own, "pretrain") == losses
    recipe_values["pretrain"]["distill"] = {"teacher": larger}
    for part in plan_recipe(parse_recipe(recipe_values)).plans.values():
        assert teacher_loss(part.recipe, "pretrain") == {}


def test_a_run_begun_without_a_teacher_is_told_how_it_is_resumed(
    recipe_values: dict[str, Any],
) -> None:
    begun = copy.deepcopy(recipe_values)
    begun["pretrain"]["distill"] = "none"
    folder = Path(recipe_values["output"])
    folder.mkdir()
    (folder / "recipe.yaml").write_text(parse_recipe(begun).to_yaml())
    (folder / "sessions.jsonl").write_text("")
    (folder / "metrics.jsonl").write_text('{"phase": "pretrain"}\n')
    (problem,) = plan_run(parse_recipe(recipe_values)).problems
    assert "pretrain.distill (saved 'none', now {'teacher': None" in problem
    assert "recipe.yaml`, write pretrain.distill: none, as it was begun, or write" in problem
    assert not plan_run(parse_recipe(begun)).problems


def test_losses_are_compared_with_the_teachers_and_a_run_may_move(
    recipe_values: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    values = only_pretraining(recipe_values)
    home = tmp_path / "old"
    values["output"] = str(home / "out")
    larger = made_larger(model_folder, home / "larger")
    values["pretrain"]["distill"] = {"teacher": larger}
    text = drprune("plan", write(values, tmp_path / "r.yaml"))
    assert f"reference losses: from {larger} (" in text
    assert "the teacher (reference_loss: auto); measured before training" in text
    with Run(parse_recipe(values)).session("test") as run:
        run.run(["prepare"])
        run.measure_reference_losses()
    measured = json.loads((home / "out/reference_loss.json").read_text())
    assert [model["path"] for model in measured["models"]] == [larger]
    assert measured["reference_loss"] == measured["models"][0]["loss"]
    (home / "out/metrics.jsonl").write_text('{"phase": "pretrain"}\n')  # as if it had begun
    moved = home.rename(tmp_path / "new")
    recipe = open_recipe(moved / "out/recipe.yaml")
    assert list(recipe.teachers("pretrain")) == [str(moved / "larger")]
    assert not plan_run(recipe).problems
    changed = open_recipe(moved / "out/recipe.yaml", ["pretrain.distill.weight=0.5"])
    assert any(
        "pretrain.distill.weight (saved 0.9, now 0.5)" in p for p in plan_run(changed).problems
    )


def test_a_finished_phase_needs_its_teacher_no_more(
    recipe_values: dict[str, Any], larger: str
) -> None:
    recipe_values["pretrain"]["distill"] = {"teacher": larger}
    shutil.rmtree(larger)
    recipe = parse_recipe(recipe_values)
    assert any("pretrain.distill.teacher" in line for line in plan_run(recipe).problems)
    output = Path(recipe.output)
    shutil.copytree(recipe_values["model"]["source"], output / "model")
    (output / "recipe.yaml").write_text(recipe.to_yaml())
    (output / "sessions.jsonl").write_text("")
    plan = plan_run(recipe)
    assert not plan.problems
    assert "pretrain" not in plan.teachers


def test_a_teacher_that_does_not_fit_into_the_memory_is_refused(
    recipe_values: dict[str, Any], larger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe_values["pretrain"]["distill"] = {"teacher": larger}
    plan = planned(recipe_values)
    need, own = plan.memory["pretrain"].whole, plan.teachers["pretrain"][0].memory.whole
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(teachers, "total_memory", lambda: 2 * need - 2)
    with Run(parse_recipe(recipe_values)).session(None) as run:
        run.run(["prepare"])  # on a machine that is not to train
        with pytest.raises(BadInput) as error:
            run.run(["prepare", "pretrain"])
        message = str(error.value)
        assert message.startswith(f"pretrain.distill.teacher: {larger} takes about")
        assert "dtype: int8" in message
        assert "a smaller teacher, or distill: none" in message
        monkeypatch.setattr(teachers, "total_memory", lambda: 2 * (need - own))
        with pytest.raises(BadInput):
            run.run(["pretrain"])
        monkeypatch.setattr(teachers, "total_memory", lambda: 2 * need)
        student = run.plan.student("pretrain")
        found = run.plan.teachers["pretrain"]
        teachers.check_teacher_memory(run.recipe, "pretrain", student, found, run.accelerator)


def test_a_teacher_whose_tokenizer_cuts_otherwise_is_refused_before_training(
    recipe_values: dict[str, Any], larger: str
) -> None:
    file = Path(larger) / "tokenizer.json"
    content = json.loads(file.read_text())
    content["pre_tokenizer"] = None  # the vocabulary is the same
    file.write_text(json.dumps(content))
    recipe_values["pretrain"]["distill"] = {"teacher": larger}
    recipe = planned(recipe_values).recipe
    with Run(recipe).session(None) as run:
        data = run.data
    with pytest.raises(BadInput, match="those of other tokens"):
        teachers.check_teacher_tokenizers(recipe, "pretrain", data)
    teachers.check_teacher_tokenizers(recipe, "prune", data)


def test_more_ranks_and_fewer_bits_take_less_memory() -> None:
    shape = ModelShape(
        model_type="llama", vocab_size=32_000, hidden_size=4096, intermediate_size=11_008,
        num_layers=32, num_heads=32, num_kv_heads=32, head_dim=128,
    )  # fmt: skip
    training = Training(micro_batch=1)

    def bytes_of(ranks: int, parallelism: str = "fsdp2", **settings: Any) -> int:
        own = training.model_copy(update={"parallelism": parallelism})
        return teacher_memory(shape, Distill(**settings), own, 512, ranks)

    whole = bytes_of(1)
    assert 2 * shape.num_parameters() < whole < 2 * shape.num_parameters() + 2**30
    assert bytes_of(8) < bytes_of(4) < whole
    assert bytes_of(8, shard=False) == bytes_of(8, "ddp") == whole
    assert bytes_of(8, "ddp", shard=True) == bytes_of(8)
    assert bytes_of(1, shard=True) == whole
    assert bytes_of(1, dtype="int8") == bytes_of(8, dtype="int8") < 0.6 * whole
    assert bytes_of(1, dtype="fp32") > 1.5 * whole
    assert bytes_of(1, teacher="self") == whole - 2 * shape.num_parameters() + 512 * 2 * 32_000
