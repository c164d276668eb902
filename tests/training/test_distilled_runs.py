"""Runs with teachers: what is learnt, logged, kept and resumed."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from drpruning.distillation import log_probabilities
from drpruning.training.objective import DomainMeans
from drpruning.training.teacher import model_digest
from helpers.file_faults import failing
from helpers.interrupted_runs import assert_same_outcome, run_until
from helpers.small_runs import logged, on_two_ranks, only_pretraining, renamed, run, variant, write
from helpers.warned import warned


def copied(model: Path, folder: Path, noise: float = 0.0) -> Path:
    """A copy of a model's folder, its weights moved by random numbers of this size."""
    shutil.copytree(model, folder)
    path, generator = folder / "model.safetensors", torch.Generator().manual_seed(0)
    tensors = {
        name: value + noise * torch.randn(value.shape, generator=generator)
        for name, value in load_file(path).items()
    }
    save_file(tensors, path, {"format": "pt"})
    return folder


@pytest.fixture
def values(recipe_values: dict[str, Any], model_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Eight steps of continued pretraining of a model, under one that is not far from it."""
    values = only_pretraining(recipe_values)
    values["model"]["source"] = str(copied(model_folder, tmp_path / "student", 0.02))
    values["pretrain"].update(steps=8, distill={"teacher": str(model_folder), "dtype": "fp32"})
    values["scheduling"] = {"reference_loss": "none"}
    return values


def divergences(folder: Path, phase: str = "pretrain") -> list[float]:
    lines = logged(folder)
    return [r["divergence"] for r in lines if r["kind"] == "step" and r["phase"] == phase]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_a_pruned_model_comes_nearer_to_its_source(
    recipe_values: dict[str, Any], model_folder: Path
) -> None:
    recipe_values["pretrain"].update(steps=30, distill={"weight": 1.0})
    recipe_values["training"]["log_every"] = 5
    folder = run(recipe_values, "prune", "pretrain")
    found = divergences(folder)
    assert all(value > 0 for value in found)
    assert found[-1] < 0.8 * found[0]
    lines = [r for r in logged(folder) if r["phase"] == "pretrain"]
    (start,) = (r for r in lines if r["kind"] == "start")
    assert list(start["teachers"]) == [str(model_folder)]
    evaluations = [r for r in lines if r["kind"] == "eval"]
    assert "divergence" not in evaluations[0]
    assert evaluations[1]["divergence"].keys() == {"numbers", "colours", "animals"}
    assert not any("divergence" in r for r in logged(folder) if r["phase"] == "prune")


def test_divergence_by_domain_adds_up_to_that_of_the_steps(values: dict[str, Any]) -> None:
    values["training"]["log_every"] = 1
    values["pretrain"]["distill"]["temperature"] = 2.0
    folder = run(values, "pretrain")
    lines = logged(folder)
    steps = {r["step"]: r["divergence"] for r in lines if r["kind"] == "step"}
    for end in (r for r in lines if r["kind"] == "eval" and r["step"]):
        share, found = end["realised_share"], end["divergence"]
        mean = sum(share[name] * value for name, value in found.items())
        assert mean == pytest.approx((steps[end["step"]] + steps[end["step"] - 1]) / 2, rel=1e-5)


def test_means_by_domain_weigh_rows_alike_whatever_ranks_they_were_on() -> None:
    """Also where a run is resumed on fewer ranks, and without the steps that were skipped."""
    no, yes = torch.tensor(0.0), torch.tensor(1.0)
    means = DomainMeans()
    means.add(torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64), no, ranks=4)
    resumed = DomainMeans()
    resumed.load_state_dict(means.state_dict(), torch.device("cpu"))
    resumed.add(torch.tensor([[torch.nan, 1.0], [4.0, 1.0]], dtype=torch.float64), yes, ranks=2)
    resumed.add(torch.tensor([[8.0, 0.0], [4.0, 0.0]], dtype=torch.float64), no, ranks=2)
    assert resumed.take(["a", "b"]) == {"a": (4 + 16) / (8 + 8)}
    assert resumed.take(["a", "b"]) is None
    assert resumed.state_dict() == {}


def test_a_model_has_nothing_to_learn_from_its_equal(
    values: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    values["model"]["source"] = str(copied(model_folder, tmp_path / "equal"))
    values["pretrain"]["distill"]["weight"] = 1.0
    values["pretrain"]["learning_rate"] = 1e-6
    assert max(divergences(run(values, "pretrain"))) < 1e-6


@pytest.mark.parametrize("policy", ["drpruning", "constant"])
def test_a_model_that_reaches_its_teacher_is_warned_of_at_the_end(
    values: dict[str, Any], policy: str
) -> None:
    values["scheduling"] = {"policy": policy}
    if policy == "drpruning":  # measures its teacher
        values["scheduling"]["reference_loss"] = "auto"
    folder = run(values, "pretrain")
    found = [r for r in logged(folder) if r["kind"] == "warning" and "the teacher" in r["message"]]
    assert len(found) == (policy == "drpruning")
    assert all("compare with distill: none" in r["message"] for r in found)


def test_without_weight_it_is_plain_training(values: dict[str, Any]) -> None:
    values["pretrain"]["distill"].update(weight=1e-9, final_weight=0.0)
    plain = variant(values, "plain")
    plain["pretrain"]["distill"] = "none"
    found, expected = weights(run(values, "pretrain")), weights(run(plain, "pretrain"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


def test_accumulation_equals_a_large_micro_batch(values: dict[str, Any]) -> None:
    values["pretrain"]["distill"].update(top_k=4, temperature=0.7)
    large, small = (variant(values, f"of{n}", micro_batch=n) for n in (8, 2))
    found, expected = (logged(run(v, "pretrain")) for v in (small, large))
    for one, other in zip(found, expected, strict=True):
        for key in {"loss", "divergence"} & one.keys():
            assert one[key] == pytest.approx(other[key], rel=1e-5, abs=1e-7)


def test_resumed_equals_uninterrupted(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    values["pretrain"]["distill"].update(weight=0.8, final_weight=0.2)
    values["pretrain"]["evaluate_every"] = 4
    values["training"]["checkpoint"] = {"every_steps": 3, "keep": 2}
    complete = run(renamed(values, "complete"), "pretrain")
    folder = run_until(renamed(values, "killed"), 7, monkeypatch)
    run(renamed(values, "killed"), "pretrain")
    assert_same_outcome(folder, complete)


@pytest.mark.parametrize("later", [True, False])
def test_a_teacher_may_come_or_go_where_changes_are_accepted(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *, later: bool
) -> None:
    taught, plain = values["pretrain"]["distill"], "none"
    values["pretrain"]["distill"] = plain if later else taught
    values["training"].update(log_every=1, checkpoint={"every_steps": 3, "keep": 2})
    folder = run_until(values, 4, monkeypatch)
    values["pretrain"]["distill"] = taught if later else plain
    values["training"]["checkpoint"]["accept_changes"] = True
    run(values, "pretrain")
    steps = [r for r in logged(folder) if r["kind"] == "step"]
    assert [r["step"] for r in steps if "divergence" in r] == (
        [4, 5, 6, 7, 8] if later else [1, 2, 3]
    )


def test_kept_top_tokens_are_those_that_were_computed(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    values["pretrain"]["distill"].update(top_k=5, cache=True)
    first = run(variant(values, "first"), "pretrain")

    def refuse(*_: Any) -> None:
        raise AssertionError("the teacher was asked although everything is kept")

    monkeypatch.setattr("drpruning.training.teacher.log_probabilities", refuse)
    second = run(variant(values, "second"), "pretrain")
    assert_same_outcome(second, first)


def test_a_damaged_block_of_top_tokens_is_computed_again(values: dict[str, Any]) -> None:
    values["pretrain"]["distill"].update(top_k=5, cache=True)
    first = run(variant(values, "first"), "pretrain")
    for file in first.with_name("data").glob("*/teacher-*.top"):
        assert file.stat().st_size
        content = bytearray(file.read_bytes())
        content[: len(content) // 2] = bytes(len(content) // 2)
        file.write_bytes(content)
    assert_same_outcome(run(variant(values, "second"), "pretrain"), first)


def test_a_block_to_keep_is_computed_in_chunks(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    values["pretrain"]["distill"].update(top_k=5, cache=True)
    plain, sizes = log_probabilities, []

    def spied(logits: torch.Tensor, *arguments: Any) -> Any:
        sizes.append(len(logits))
        return plain(logits, *arguments)

    monkeypatch.setattr("drpruning.training.teacher.log_probabilities", spied)
    monkeypatch.setattr("drpruning.training.teacher.chunk_size", lambda _: 5)
    found = divergences(run(values, "pretrain"))
    assert max(sizes) == 5
    del values["pretrain"]["distill"]["cache"]
    assert found == pytest.approx(divergences(run(variant(values, "plain"), "pretrain")), rel=1e-2)


def test_a_full_disk_costs_kept_tokens_not_training(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    values["pretrain"]["distill"].update(top_k=5, cache=True)
    first = run(variant(values, "first"), "pretrain")
    for file in first.with_name("data").glob("*/teacher-*.top"):
        file.unlink()
    caplog.clear()
    with monkeypatch.context() as patch:
        patch.setattr("drpruning.training.teacher_store.os.pwrite", failing)
        second = run(variant(values, "second"), "pretrain")
    assert_same_outcome(second, first)
    (warning,) = (text for text in warned(caplog) if "distill.cache" in text)
    assert "No space left on device; no more top tokens are kept" in warning


def test_a_block_that_another_run_writes_too_is_not_left_out(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was just written cannot be read back where another run is writing it."""
    values["pretrain"]["distill"].update(top_k=5, cache=True)
    first = run(variant(values, "first"), "pretrain")
    with monkeypatch.context() as patch:
        patch.setattr("drpruning.training.teacher.TopTokenStore.read", lambda *_: None)
        second = run(variant(values, "second"), "pretrain")
    assert_same_outcome(second, first)


def test_kept_tokens_are_those_of_the_teacher_as_it_is_now(
    values: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    """A teacher whose weights stay while its settings change is another one."""
    values["pretrain"]["distill"].update(top_k=5, cache=True)
    teacher = copied(model_folder, tmp_path / "teacher")
    values["pretrain"]["distill"]["teacher"] = str(teacher)
    first = run(variant(values, "first"), "pretrain")
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.9}))
    second = run(variant(values, "second"), "pretrain")
    assert divergences(second)[0] != pytest.approx(divergences(first)[0], rel=0.01)


def test_every_column_of_a_large_matrix_is_in_the_digest() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 8, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=2048, num_hidden_layers=1, **sizes))
    before = model_digest(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 1:] += 1
    assert model_digest(model) != before


def test_teachers_of_another_domain_have_no_say(
    values: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    """Two teachers, one of them for one domain; where both are the same model it is one teacher."""
    twin = copied(model_folder, tmp_path / "twin")
    one = variant(values, "one")
    several = copy.deepcopy(variant(values, "several"))
    del several["pretrain"]["distill"]["teacher"]
    several["pretrain"]["distill"]["teachers"] = {
        str(model_folder): {"numbers": 1.0, "colours": 2.0},
        str(twin): {"animals": 0.5, "colours": 1.0},
    }
    found, expected = weights(run(several, "pretrain")), weights(run(one, "pretrain"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", [{"dtype": "int8"}, {"dtype": "bf16"}, {"top_k": 3}])
def test_other_teachers_teach(values: dict[str, Any], settings: dict[str, Any]) -> None:
    values["pretrain"]["distill"].update(settings)
    found = divergences(run(values, "pretrain"))
    assert all(-1e-4 < value < 1 for value in found)


@pytest.mark.parametrize("teacher", ["self", None])
def test_the_unmasked_model_teaches_the_masked_one(
    recipe_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, teacher: str | None
) -> None:
    """Itself, or loaded once more; by a policy that measures no model before training."""
    recipe_values["scheduling"] = {"policy": "constant"}
    recipe_values["prune"].update(distill={"teacher": teacher, "weight": 0.5}, steps=10)
    recipe_values["training"]["checkpoint"] = {"every_steps": 3, "keep": 2}
    complete = run(renamed(recipe_values, "complete"), "prune")
    found = divergences(complete, "prune")
    assert found[0] < found[-1]  # masks close
    run_until(renamed(recipe_values, "killed"), 7, monkeypatch, "prune")
    assert logged(run(renamed(recipe_values, "killed"), "prune")) == logged(complete)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallelism", "settings"),
    [
        ("fsdp2", {}),
        ("fsdp2", {"shard": False, "top_k": 5, "cache": True}),
        ("ddp", {"shard": True}),
    ],
    ids=["teacher in shards", "complete teacher, kept tokens", "student complete"],
)
def test_two_ranks_equal_one(
    recipe_values: dict[str, Any], tmp_path: Path, parallelism: str, settings: dict[str, Any]
) -> None:
    """Also of the model that teaches itself in pruning."""
    recipe_values["scheduling"] = {"policy": "constant"}  # it amplifies differences of rounding
    recipe_values["prune"].update(steps=6, distill={"teacher": "self"})
    recipe_values["pretrain"].update(steps=6, distill={"dtype": "fp32", **settings})
    one = variant(recipe_values, "one", parallelism=parallelism)
    two = variant(recipe_values, "two", parallelism=parallelism)
    run(one, "prune", "pretrain")
    on_two_ranks("run", write(two, tmp_path / "two.yaml"))
    pairs = list(zip(*(logged(Path(values["output"])) for values in (one, two)), strict=True))
    assert len(pairs) > 10
    for expected, found in pairs:
        for key in {"loss", "divergence"} & expected.keys():
            assert found[key] == pytest.approx(expected[key], abs=1e-4)
