"""show-plan, compare-plans and apply-plan, and the arithmetic below them."""

import json
import math
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from drpruning.cli.commands import app
from drpruning.cli.pruning_plan_tables import SHADES, picture, print_pruning_plan
from drpruning.pruning import ModelShape, PruningPlan
from drpruning.pruning.similarity import chance_similarity, compare_plans
from drpruning.report.formats import ranges
from drpruning.runs.plans import compare_files, compare_history, find_plan
from helpers.base_install import without_extras
from helpers.small_runs import altered_model

MULTI_HEAD = ModelShape(
    model_type="llama",
    num_layers=6,
    hidden_size=24,
    intermediate_size=20,
    num_heads=6,
    num_kv_heads=6,
    head_dim=4,
    vocab_size=50,
)
GROUPED = replace(MULTI_HEAD, model_type="qwen2", num_heads=12, num_kv_heads=3)
ALL = {
    "num_layers": 4,
    "hidden_size": 12,
    "intermediate_size": 7,
    "num_heads": 4,
    "num_kv_heads": 4,
}
GROUPS = {"num_heads": 8, "num_kv_heads": 2}
runner = CliRunner()


def random_plan(source: ModelShape, rng: random.Random, **target: int) -> PruningPlan:
    """A plan that is uniform over those of its shapes; the target names key-value heads too."""
    shape = replace(source, **target)
    size, heads, groups = source.queries_per_group, [], []

    def some(count: int, kept: int) -> tuple[int, ...]:
        return tuple(sorted(rng.sample(range(count), kept)))

    for _ in range(shape.num_layers):
        groups.append(some(source.num_kv_heads, shape.num_kv_heads))
        inside = [(g, some(size, shape.queries_per_group)) for g in groups[-1]]
        heads.append(tuple(g * size + i for g, chosen in inside for i in chosen))
    return PruningPlan(
        source=source,
        target=shape,
        layers=some(source.num_layers, shape.num_layers),
        hidden=some(source.hidden_size, shape.hidden_size),
        kv_groups=tuple(groups),
        heads=tuple(heads),
        intermediate=tuple(
            some(source.intermediate_size, shape.intermediate_size) for _ in range(shape.num_layers)
        ),
    )


def spans(indices: Sequence[int]) -> str:
    return ranges(indices, " ", "-") or "none"


def refused(*arguments: str | Path) -> str:
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


def printed(*arguments: str | Path) -> str:
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run as pruning leaves it: four evaluations, the last of which gave the plan."""
    folder, rng = tmp_path / "run", random.Random(1)
    (folder / "prune").mkdir(parents=True)
    (folder / "pruned").mkdir()
    (folder / "pruned" / "config.json").write_text("{}")
    plans = [random_plan(MULTI_HEAD, rng, **ALL) for _ in range(4)]
    lines = [
        json.dumps({"step": 20 * index, "plan": json.loads(plan.to_json())}) + "\n"
        for index, plan in enumerate(plans)
    ]
    (folder / "prune" / "plans.jsonl").write_text("".join(lines))
    plans[-1].save(folder / "prune" / "plan.json")
    return folder


# What chance gives.


@pytest.mark.parametrize(
    ("source", "one", "other"),
    [
        (MULTI_HEAD, ALL, ALL),
        (MULTI_HEAD, ALL, {"num_layers": 5, "intermediate_size": 13}),
        (
            GROUPED,
            {"num_layers": 3, "hidden_size": 20, **GROUPS},
            {"num_heads": 4, "num_kv_heads": 1},
        ),
        (GROUPED, {"num_layers": 5, **GROUPS}, {"num_kv_heads": 1, "num_heads": 3}),
    ],
    ids=["one-shape", "two-shapes", "groups", "groups-and-heads"],
)
def test_chance_is_the_mean_similarity_of_random_plans(
    source: ModelShape, one: dict[str, int], other: dict[str, int]
) -> None:
    rng, draws = random.Random(0), 600
    pairs = [
        (random_plan(source, rng, **one), random_plan(source, rng, **other)) for _ in range(draws)
    ]
    (comparison,) = compare_plans(dict(zip("ab", pairs[0], strict=True)))
    assert comparison.chance.keys() == comparison.similarity.keys()
    for name, share in comparison.chance.items():
        found = [first.similarity(second)[name] for first, second in pairs]
        mean = sum(found) / draws
        deviation = math.sqrt(sum((value - mean) ** 2 for value in found) / draws)
        assert abs(mean - share) < 4.5 * deviation / math.sqrt(draws) + 1e-12, name


def test_chance_for_the_papers_shapes() -> None:
    llama = ModelShape(
        model_type="llama", num_layers=32, hidden_size=4096, intermediate_size=11008,
        num_heads=32, num_kv_heads=32, head_dim=128, vocab_size=32000,
    )  # fmt: skip
    halves = {"hidden_size": 2048, "intermediate_size": 5504, "num_heads": 16, "num_kv_heads": 16}

    plan = random_plan(llama, random.Random(0), num_layers=24, **halves)
    expected = {"layer": 0.625, "hidden": 0.5, "head": 0.53125, "intermediate": 0.53125}
    assert chance_similarity(plan, plan, expected) == expected


# Comparing.


def test_a_plan_agrees_with_itself_and_comparison_does_not_depend_on_the_order() -> None:
    rng = random.Random(2)
    one, other = (random_plan(GROUPED, rng, num_layers=4, **GROUPS) for _ in range(2))
    (same,) = compare_plans({"a": one, "b": replace(one)})
    assert set(same.similarity.values()) == {1.0}
    assert same.only_first == same.only_second == same.other_heads == ()
    (there,), (back,) = compare_plans({"a": one, "b": other}), compare_plans({"b": other, "a": one})
    assert there.similarity == back.similarity
    assert there.chance == back.chance
    assert there.only_first == back.only_second == tuple(sorted({*one.layers} - {*other.layers}))
    assert there.other_heads == back.other_heads
    assert set(there.other_heads) <= {*one.layers} & {*other.layers}


def test_every_pair_is_compared_on_the_command_line(tmp_path: Path) -> None:
    rng, files = random.Random(3), [tmp_path / f"{name}.json" for name in "abc"]
    for file in files:
        random_plan(MULTI_HEAD, rng, **ALL).save(file)
    found = json.loads(printed("compare-plans", *files, "--json"))
    assert [(pair["first"], pair["second"]) for pair in found] == [
        (str(files[i]), str(files[j])) for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    plans = [PruningPlan.load(file) for file in files]
    assert found[1]["similarity"] == plans[0].similarity(plans[2])
    text = printed("compare-plans", *files)
    for pair in ("A B", "A C", "B C"):
        assert pair in text
    assert "by chance" in text
    assert f"{found[2]['similarity']['hidden']:.1%}" in text
    assert f"layers only A keeps: {spans(found[0]['only_first'])}" in text


def test_pairs_of_other_shapes_have_their_own_chance(tmp_path: Path) -> None:
    rng = random.Random(4)
    files = {name: tmp_path / f"{name}.json" for name in ("a", "b", "deep")}
    for name, file in files.items():
        target = ALL | ({"num_layers": 5} if name == "deep" else {})
        random_plan(MULTI_HEAD, rng, **target).save(file)
    text = printed("compare-plans", *files.values())
    assert f"({4 * 4 / 36 + 2 * 2 / 36:.1%})" in text
    assert f"({4 * 5 / 36 + 2 * 1 / 36:.1%})" in text
    assert "In brackets" in text
    assert "by chance" not in text


def test_plans_of_different_sources_are_refused(tmp_path: Path) -> None:
    rng = random.Random(5)
    random_plan(MULTI_HEAD, rng, **ALL).save(tmp_path / "a.json")
    random_plan(replace(MULTI_HEAD, hidden_size=36), rng, **ALL).save(tmp_path / "b.json")
    message = refused("compare-plans", tmp_path / "a.json", tmp_path / "b.json")
    assert "a.json" in message
    assert "b.json" in message
    assert "hidden_size 24 and 36" in message
    assert "named twice" in refused("compare-plans", tmp_path / "a.json", tmp_path / "a.json")


def test_history_leads_to_the_final_plan(run_folder: Path) -> None:
    history = compare_files([run_folder])
    assert [(c.first, c.second) for c in history] == [
        (f"step {step}", "final") for step in (0, 20, 40, 60)
    ]
    assert set(history[-1].similarity.values()) == {1.0}
    assert min(history[0].similarity.values()) < 1
    text = printed("compare-plans", run_folder)
    assert "step 40" in text
    assert "by chance" in text
    assert len(json.loads(printed("compare-plans", run_folder, "--json"))) == 4


def test_history_of_a_run_that_is_still_training(run_folder: Path) -> None:
    (run_folder / "prune" / "plan.json").unlink()
    file = run_folder / "prune" / "plans.jsonl"
    torn = file.read_text()[:-40]
    file.write_text(torn)
    history = compare_history(run_folder)
    assert [(c.first, c.second) for c in history][-1] == ("step 40", "latest")
    assert file.read_text() == torn
    message = refused("show-plan", run_folder)
    assert "not complete" in message
    assert f"compare-plans {run_folder}" in message


def test_broken_histories_are_refused(run_folder: Path, tmp_path: Path) -> None:
    assert "history" in refused("compare-plans", run_folder / "prune" / "plan.json")
    assert "history" in refused("compare-plans", tmp_path)
    file = run_folder / "prune" / "plans.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    for broken in ("{}\n", "[1]\n", "nothing\n", '{"step": 1, "plan": {}}\n'):
        file.write_text(lines[0] + broken)
        assert "plans.jsonl, line 2" in refused("compare-plans", run_folder)
    file.write_text("")
    assert "no evaluation" in refused("compare-plans", run_folder)


# Showing.


def test_a_plan_is_found_by_file_run_and_model(run_folder: Path) -> None:
    plan = PruningPlan.load(run_folder / "prune" / "plan.json")
    for place in ("prune/plan.json", "prune", "", "pruned"):
        assert find_plan(run_folder / place) == plan


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_no_plan_says_what_to_give(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    message = refused("show-plan", tmp_path / name)
    assert name in message
    assert "plan.json" in message


def test_files_that_are_no_plan_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    for text in ("{}", "[]", "no json", '{"version": 1}'):
        file.write_text(text)
        assert str(file) in refused("show-plan", file)


def test_show_plan_counts_and_names_what_stays(tmp_path: Path) -> None:
    plan = random_plan(GROUPED, random.Random(6), num_layers=4, hidden_size=12, **GROUPS)
    plan.save(tmp_path / "plan.json")
    text = printed("show-plan", tmp_path / "plan.json", "--layers")
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert f"parameters {GROUPED.num_parameters():,} {plan.target.num_parameters():,}" in " ".join(
        rows
    )
    assert "hidden size 24 12 50.0%" in rows
    removed = sorted(set(range(6)) - set(plan.layers))
    assert f"layers removed: {spans(removed)}" in rows
    for layer, groups, heads in zip(plan.layers, plan.kv_groups, plan.heads, strict=True):
        (row,) = [row for row in rows if row.startswith(f"{layer} ")]
        assert row.endswith(f"{spans(groups)} {spans(heads)}")
    for layer in removed:
        (row,) = [row for row in rows if row.startswith(f"{layer} ")]
        assert SHADES[-1] not in row
    assert "intermediate " not in text.replace("intermediate size", "")


@pytest.mark.parametrize(
    "target", [{"num_layers": 5}, {"hidden_size": 12}, {"intermediate_size": 9}, {}]
)
def test_show_plan_draws_only_what_is_cut(target: dict[str, int], tmp_path: Path) -> None:
    plan = random_plan(MULTI_HEAD, random.Random(7), **target)
    plan.save(tmp_path / "plan.json")
    text = printed("show-plan", tmp_path / "plan.json", "--layers")
    assert "query heads" in text
    assert ("layer " in text) == ("intermediate_size" in target)


def test_terminals_that_know_only_ascii_are_served(tmp_path: Path) -> None:
    plan = random_plan(GROUPED, random.Random(8), num_layers=4, hidden_size=12, **GROUPS)
    with (tmp_path / "out.txt").open("w", encoding="ascii") as file:
        print_pruning_plan(plan, layers=True, console=Console(file=file, width=60))
    assert "layers  " in (tmp_path / "out.txt").read_text(encoding="ascii")


@pytest.mark.parametrize(("size", "cells"), [(8, 8), (7, 20), (1000, 24), (25, 24)])
def test_a_picture_has_a_mark_for_every_run_of_units(size: int, cells: int) -> None:
    assert picture(range(size), size, cells) == SHADES[-1] * min(size, cells)
    assert picture((), size, cells) == SHADES[0] * min(size, cells)
    one_missing = picture(range(1, size), size, cells)
    assert one_missing[0] != SHADES[-1]
    assert one_missing[1:] == SHADES[-1] * (min(size, cells) - 1)
    marks = [picture(range(kept), 1000, 1) for kept in range(1001)]
    assert marks == sorted(marks, key=SHADES.index)
    assert set(marks) == set(SHADES)


def test_plans_are_shown_and_compared_without_the_extras(run_folder: Path) -> None:
    for command, word in (("show-plan", "stays"), ("compare-plans", "by chance")):
        code = f"from drpruning.cli.commands import app\napp([{command!r}, {str(run_folder)!r}])"
        done = without_extras(code)
        assert done.returncode == 0, done.stderr
        assert word in done.stdout
    arguments = ["apply-plan", str(run_folder), "m", "o"]
    code = f"from drpruning.cli.commands import app\napp({arguments!r})"
    assert without_extras(code).returncode == 2


# Applying.

TARGET = {
    "num_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "num_kv_heads": 1,
}


@pytest.fixture
def plan_file(model_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    random_plan(ModelShape.of(model_folder), random.Random(9), **TARGET).save(path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_is_cut_and_written_whole(
    model_folder: Path, plan_file: Path, tmp_path: Path, dtype: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from drpruning.pruning import apply_plan

    source, output = tmp_path / "source", tmp_path / "out" / "cut"
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=getattr(torch, dtype))
    model.save_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.save_pretrained(source)
    text = printed("apply-plan", plan_file, source, output)
    assert dtype in text
    plan = PruningPlan.load(plan_file)
    assert f"{plan.target.num_parameters():,}" in text

    cut, info = AutoModelForCausalLM.from_pretrained(output, dtype="auto", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = dict(apply_plan(model, plan).named_parameters())
    assert dict(cut.named_parameters()).keys() == expected.keys()
    for name, parameter in cut.named_parameters():
        assert parameter.dtype == getattr(torch, dtype)
        assert torch.equal(parameter, expected[name])
    tokens = AutoTokenizer.from_pretrained(output)("one red cat", return_tensors="pt")
    assert tokens["input_ids"].tolist() == [tokenizer("one red cat")["input_ids"]]
    assert cut.generate(**tokens, max_new_tokens=3, do_sample=False).shape[1] > 3
    card = (output / "README.md").read_text()
    assert "# Cut out of `source` by a pruning plan" in card
    assert str(tmp_path) not in card
    assert find_plan(output) == plan
    assert [path.name for path in output.parent.iterdir()] == ["cut"]


@pytest.mark.parametrize(
    ("layers", "out_of_turn"),
    [((0, 1, 4, 5), False), ((0, 3), False), ((1, 2), True), ((0, 2), True)],
)
def test_layers_of_a_plan_that_are_out_of_turn_are_warned_of(
    model_folder: Path, tmp_path: Path, layers: tuple[int, ...], *, out_of_turn: bool
) -> None:
    from transformers import AutoConfig, Gemma2Config, Gemma2ForCausalLM

    source, output = tmp_path / "source", tmp_path / "cut"
    shutil.copytree(model_folder, source)
    config = Gemma2Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=6, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=4, bos_token_id=None,
        eos_token_id=0,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(source)
    plan = random_plan(ModelShape.of(source), random.Random(3), num_layers=len(layers))
    replace(plan, layers=layers).save(tmp_path / "plan.json")
    text = " ".join(printed("apply-plan", tmp_path / "plan.json", source, output).split())
    assert ("llama.cpp and Transformers before 4.53" in text) == out_of_turn
    kinds = AutoConfig.from_pretrained(output).layer_types
    assert (kinds == config.layer_types[: len(layers)]) != out_of_turn


def test_output_that_is_taken_is_refused_and_kept(
    model_folder: Path, plan_file: Path, tmp_path: Path
) -> None:
    folder, file = tmp_path / "mine", tmp_path / "file"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    file.write_text("mine")
    for output in (folder, file):
        assert "not empty" in refused("apply-plan", plan_file, model_folder, output)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    assert file.read_text() == "mine"
    assert "file" in refused("apply-plan", plan_file, model_folder, file / "below")


def test_a_failure_while_writing_leaves_nothing(
    model_folder: Path, plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drpruning.models import result

    save_model, output = result.save_model, tmp_path / "out" / "cut"

    def full(*arguments: object) -> None:
        save_model(*arguments)  # type: ignore[arg-type]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(result, "save_model", full)
    message = refused("apply-plan", plan_file, model_folder, output)
    assert "No space left" in message
    assert str(output) in message
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"intermediate_size": 96}, ["made for another model", "intermediate_size 96, not 48"]),
        ({"model_type": "bert", "architectures": ["BertModel"]}, ["Bert", "causal"]),
    ],
)
def test_another_model_is_refused_before_it_is_loaded(
    model_folder: Path, plan_file: Path, tmp_path: Path,
    config: dict[str, object], words: list[str],
) -> None:  # fmt: skip
    model = altered_model(model_folder, tmp_path / "model", **config)
    (model / "model.safetensors").unlink()
    message = refused("apply-plan", plan_file, model, tmp_path / "out")
    for word in (*words, "MODEL", str(model)):
        assert word in message
    assert not (tmp_path / "out").exists()


def test_models_without_whole_safetensors_are_refused(
    model_folder: Path, plan_file: Path, tmp_path: Path
) -> None:
    model = altered_model(model_folder, tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "not a complete safetensors" in refused("apply-plan", plan_file, model, tmp_path / "out")
    weights.rename(model / "pytorch_model.bin")
    assert "no safetensors" in refused("apply-plan", plan_file, model, tmp_path / "out")
    assert "MODEL" in refused("apply-plan", plan_file, "no/such/model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_help_says_that_weights_are_not_rescaled() -> None:
    assert "not rescaled" in " ".join(printed("apply-plan", "--help").split())
    for command in ("show-plan", "compare-plans", "apply-plan"):
        assert "Examples" in printed(command, "--help")
