"""The table of wrong inputs that are refused before torch is imported."""

import io
import json
import shutil
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from drpruning.pruning import ModelShape, PruningPlan
from helpers.damaged_places import (
    DOMAINS,
    Place,
    Row,
    both,
    config,
    field,
    file,
    line,
    nothing,
    shape,
)
from helpers.logged_run import LoggedRun

PLAN = ("plan", "recipe.yaml")
BOMB = "\n".join(
    ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    + [f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(9)]
)
DEEP = "[" * 20_000


def asked(*assignments: str) -> tuple[str, ...]:
    """The command with `--set` assignments."""
    return (*PLAN, *(word for one in assignments for word in ("--set", one)))


def source(name: str, content: str | bytes = "", **fields: Any) -> Any:
    """Another source for the first domain."""
    parts = [field("data.domains.numbers.source", name)]
    parts += [field(f"data.domains.numbers.{key}", value) for key, value in fields.items()]
    return both(*parts, *([file(name, content)] if content else []))


def removed(name: str) -> Any:
    return lambda place: (place / name).unlink()


def renamed(name: str, other: str) -> Any:
    return lambda place: (place / name).rename(place / other)


def cut(name: str, count: int = 100) -> Any:
    return lambda place: place.write(name, (place / name).read_bytes()[:-count])


def replaced(name: str, old: bytes, new: bytes) -> Any:
    return lambda place: place.write(name, (place / name).read_bytes().replace(old, new))


def parquet(**column: Any) -> bytes:
    """A parquet file of one row."""
    stream = io.BytesIO()
    pq.write_table(pa.table({name: [value] for name, value in column.items()}), stream)
    return stream.getvalue()


def link(name: str, target: str) -> Any:
    """A symbolic link in the place of what may be there."""

    def spoil(place: Place) -> None:
        (place / name).unlink(missing_ok=True)
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to(target)

    return spoil


def begun(place: Place) -> None:
    """A run of the recipe has begun in its folder."""
    place.write("out/recipe.yaml", (place / "recipe.yaml").read_text())
    place.write("out/sessions.jsonl", "{}\n")


def folder_of_text(place: Place) -> None:
    place.write("text/n.jsonl", (place / "numbers.jsonl").read_bytes())
    field("data.domains.numbers.source", "text")(place)


def logged(*phases: str, **scheduling: Any) -> Any:
    return lambda place: LoggedRun(place / "run", phases or ("prune", "pretrain"), **scheduling)


def whole_plan(place: Place) -> None:
    """A plan that keeps all of the model."""
    model = ModelShape.of(place / "model")
    layers = range(model.num_layers)

    def all_of(count: int) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(range(count)) for _ in layers)

    PruningPlan(
        source=model, target=model, layers=tuple(layers), hidden=tuple(range(model.hidden_size)),
        kv_groups=all_of(model.num_kv_heads), heads=all_of(model.num_heads),
        intermediate=all_of(model.intermediate_size),
    ).save(place / "plan.json")  # fmt: skip


def lines(*texts: str, name: str = "numbers.jsonl") -> Any:
    """Another text of the first domain, in place of the one that is there."""
    return both(field("data.domains.numbers.source", name), file(name, "\n".join(texts)))


RECIPES = [
    Row("no-such-recipe", nothing, ("none.yaml: No such file",), ("run", "none.yaml")),
    Row("recipe-is-a-folder", nothing, ("model: Is a directory",), ("run", "model")),
    Row("recipe-is-empty", file("recipe.yaml", ""), ("recipe.yaml", "mapping with model, data")),
    Row("recipe-is-a-list", file("recipe.yaml", "- 1"), ("recipe.yaml", "mapping")),
    Row("recipe-is-binary", file("recipe.yaml", b"\xff\xfe"), ("recipe.yaml", "UTF-8")),
    Row("recipe-control-character", line("a: \x01\n"), ("recipe.yaml", "not valid YAML")),
    Row("recipe-unbalanced", line("a: [1\n"), ("recipe.yaml: line", "not valid YAML")),
    Row("recipe-deep", file("recipe.yaml", DEEP), ("recipe.yaml", "nested too deeply")),
    Row("recipe-alias-bomb", line(BOMB), ("recipe.yaml", "line", "aliases")),
    Row("recipe-alias-of-itself", line("a: &a [*a]\n"), ("recipe.yaml", "line", "itself")),
    Row("recipe-endless", nothing, ("/dev/zero", "larger than"), ("plan", "/dev/zero")),
    Row("recipe-link-of-itself", link("recipe.yaml", "recipe.yaml"), ("recipe.yaml", "links")),
    Row("time-without-weights",
        shape({"num_layers": 2}, model_type="llama"),
        ("--time", "model.source"), (*PLAN, "--time")),
    Row("time-of-several-targets",
        field("model", {"source": "model", "targets": {"a": {"num_layers": 2}}}),
        ("--time", "one target", "model.target"), (*PLAN, "--time")),
    Row("recipe-utf16", file("recipe.yaml", "output: x".encode("utf-16")),
        ("recipe.yaml", "UTF-8")),
    Row("recipe-null-byte", line("a: b\0\n"), ("recipe.yaml: line", "U+0000", "take it out")),
    Row("recipe-tab", line("a:\n\t- 1\n"), ("recipe.yaml: line", "'\\t'")),
    Row("recipe-bad-flag", line("a: !!bool b\n"), ("recipe.yaml: line", "tag:yaml.org,2002:bool")),
    Row("recipe-time", line("a: !!timestamp b\n"), ("recipe.yaml: line", "timestamp")),
    Row("recipe-long-number", line(f"a: {'9' * 5000}\n"), ("recipe.yaml: line", "64 bits")),
    Row("merge-of-a-number", line("<<: 3\n"), ("recipe.yaml: line", "merging")),
    Row("key-is-a-list", line("? [a]\n: 1\n"), ("recipe.yaml: line", "in the place of a key")),
    Row("key-is-null", line("~: 1\n"), ("recipe.yaml: line", "in quotes: '~'")),
    Row("value-is-long", field("training.precision", "x" * 10**5),
        ("training.precision", "'xxx", "...")),
    Row("octal-steps", nothing, ("prune.steps", "010 is no plain"), asked("prune.steps=010")),
    Row("sexagesimal-steps", nothing, ("prune.steps", "'1:30'"), asked("prune.steps=1:30")),
    Row("where-nan", field("data.domains.numbers.where", {"k": float("nan")}), ("where.k", "nan")),
    Row("large-timeout", field("training.rank_timeout", 1e300), ("training.rank_timeout",)),
    Row("large-blocks", field("data.validation_blocks", 2**62), ("data.validation_blocks",)),
    Row("recipe-python-tag", line("a: !!python/object/apply:os.getcwd []\n"),
        ("recipe.yaml: line", "tag:yaml.org,2002:python/object")),
    Row("recipe-surrogate", line('a: "\\ud800"\n'), ("recipe.yaml: line", "UTF-8")),
    Row("key-twice", line("output: other\n"), ("recipe.yaml: line", "'output' stands twice")),
    Row("unknown-key", field("prune.stepz", 3), ("prune.stepz", "did you mean 'steps'")),
    Row("unknown-section", field("dta", {}), ("dta: unknown key", "did you mean 'data'")),
    Row("missing-steps", field("prune.steps", ...), ("prune.steps", "missing")),
    Row("missing-output", field("output", ...), ("output", "missing")),
    Row("number-as-text", field("prune.steps", "20"), ("prune.steps", "integer", "'20'")),
    Row("rate-as-text", field("prune.learning_rate", "fast"),
        ("prune.learning_rate", "number", "'fast'")),
    Row("whole-number-with-point", field("prune.steps", 4.5), ("prune.steps", "integer", "4.5")),
    Row("text-as-flag", field("training.compile", "yes"),
        ("training.compile", "true or false", "'yes'")),
    Row("list-as-text", field("output", ["out"]), ("output", "write text", "['out']")),
    Row("text-as-section", field("training", "fast"), ("training", "'fast'")),
    Row("negative-steps", field("prune.steps", -4), ("prune.steps", "greater than 0", "-4")),
    Row("no-steps", field("pretrain.steps", 0), ("pretrain.steps", "greater than 0")),
    Row("astronomic-steps", field("prune.steps", 10**400), ("recipe.yaml: line", "64 bits")),
    Row("large-steps", field("prune.steps", 10**15), ("prune.steps", "less than or equal")),
    Row("rate-nan", field("prune.learning_rate", float("nan")),
        ("prune.learning_rate", "finite")),
    Row("rate-infinite", field("prune.learning_rate", float("inf")),
        ("prune.learning_rate", "finite")),
    Row("share-nan", field("data.domains.numbers.share", float("nan")),
        ("data.domains.numbers.share", "nan")),
    Row("warmup-nan", field("prune.warmup", float("nan")), ("prune.warmup", "nan")),
    Row("beta-nan", field("prune.betas", [0.9, float("nan")]), ("prune.betas.1", "nan")),
    Row("share-infinite", field("data.domains.numbers.share", float("inf")),
        ("data.domains.numbers.share", "finite")),
    Row("share-negative", field("data.domains.numbers.share", -0.1),
        ("data.domains.numbers.share", "greater than or equal to 0", "-0.1")),
    Row("rho-nan", field("scheduling.rho", float("nan")), ("scheduling.rho", "finite")),
    Row("shares-sum", field("data.domains.numbers.share", 0.5),
        ("data.domains", "sum to 0.9", "numbers: 0.55", "data.normalise_shares: true")),
    Row("shares-all-zero", both(*(field(f"data.domains.{name}.share", 0) for name in DOMAINS)),
        ("data.domains", "every share is 0", "at least one")),
    Row("shares-too-far-apart", both(
        field("data.normalise_shares", True), field("data.domains.numbers.share", 1e200),
        field("data.domains.animals.share", 1e-200),
    ), ("data.domains", "share of animals is too small", "write 0 or a larger share")),
    Row("floor-of-an-evaluated-domain", both(
        field("data.normalise_shares", True), field("data.domains.animals.share", 0),
        field("scheduling.floor", dict.fromkeys(DOMAINS, 0.1)),
    ), ("scheduling.floor", "animals has the share 0", "leave it out")),
    Row("no-domains", field("data.domains", {}), ("data.domains", "at least one")),
    Row("domain-name-escapes", field("data.domains", {"../x": {"source": "x", "share": 1.0}}),
        ("data.domains", "'../x'", "letters")),
    Row("domain-name-with-slash", field("data.domains", {"a/b": {"source": "x", "share": 1.0}}),
        ("data.domains", "'a/b'", "letters")),
    Row("domain-name-absolute", field("data.domains", {"/x": {"source": "x", "share": 1.0}}),
        ("data.domains", "'/x'", "letters")),
    Row("domain-name-long", field("data.domains", {"x" * 300: {"source": "x", "share": 1.0}}),
        ("data.domains", "100")),
    Row("domain-names-alike", field("data.domains", {
        "web": {"source": "x", "share": 0.5}, "Web": {"source": "y", "share": 0.5},
    }), ("data.domains", "web and Web differ by case alone")),
    Row("target-names-alike", field("model", {
        "source": "model", "targets": {"small": {"num_layers": 1}, "SMALL": {"num_layers": 2}},
    }), ("model.targets", "small and SMALL differ by case alone")),
    Row("target-name-taken", field("model", {
        "source": "model", "targets": {"Data": {"num_layers": 1}},
    }), ("model.targets", "'Data'", "another name")),
    Row("floor-of-another-domain", field("scheduling.floor", {"web": 0.1}),
        ("scheduling.floor", "exactly the domains", "['web']")),
    Row("floors-too-high", field("scheduling.floor", dict.fromkeys(DOMAINS, 0.5)),
        ("scheduling.floor", "sum to 1.5")),
    Row("floor-in-words", field("scheduling.floor", "small"),
        ("scheduling.floor", "smallest_reference", "'small'")),
    Row("floor-negative", field("scheduling.floor", {"numbers": -0.1, "colours": 0, "animals": 0}),
        ("scheduling.floor.numbers", "greater than or equal to 0")),
    Row("set-quote-open", nothing, ("--set", "a quote is not closed", "in quotes"),
        asked('data.domains."my.domain.share=0.2')),
    Row("domain-name-number", field("data.domains", {1: {"source": "x", "share": 1.0}}),
        ("recipe.yaml: line", "the key 1", "in quotes: '1'")),
    Row("where-null", field("data.domains.numbers.where", {"k": None}), ("where.k", "None")),
    Row("sequence-short", field("data.sequence_length", 4), ("data.sequence_length", "8")),
    Row("samples-do-not-divide", field("prune.mask_samples", 3),
        ("prune", "mask_samples (3)", "[1, 2, 4, 8]")),
    Row("special-tokens-unknown", field("data.special_tokens", "keep"),
        ("data.special_tokens", "'text' or 'parse'", "'keep'")),
    Row("stop-never", field("prune.stop", {"evaluations": 9}),
        ("prune", "stop.evaluations (9) could never be met")),
    Row("no-phase", both(field("prune", ...), field("pretrain", ...)), ("at least one phase",)),
    Row("prune-without-target", field("model.target", ...), ("model.target", "write the shape")),
    Row("target-without-prune", field("prune", ...), ("prune", "missing", "model.target")),
    Row("target-and-targets", field("model.targets", {"a": {"num_layers": 1}}),
        ("model", "either target or targets")),
    Row("target-name-escapes", field("model", {"source": "model", "targets": {"..": {}}}),
        ("model.targets", "..")),
    Row("target-name-with-slash",
        field("model", {"source": "model", "targets": {"a/b": {"num_layers": 1}}}),
        ("model.targets", "'a/b'", "letters")),
    Row("dtype-unknown", field("model.dtype", "int8"), ("model.dtype", "'bfloat16'", "'int8'")),
    Row("shard-size-without-unit", field("model.max_shard_size", "5"),
        ("model.max_shard_size", "write a size such as 5GB or 500MB", "'5'")),
    Row("shard-size-zero", field("model.max_shard_size", "0.0GB"),
        ("model.max_shard_size", "write a size such as 5GB or 500MB")),
    Row("shard-size-of-a-number", field("model.max_shard_size", 5_000_000),
        ("model.max_shard_size", "5000000")),
    Row("generation-config-no-object", file("model/generation_config.json", "[]"),
        ("model.source: model/generation_config.json does not hold a JSON object",)),
    Row("generation-config-no-json", file("model/generation_config.json", "{'a': 1}"),
        ("model.source: model/generation_config.json is not valid JSON",)),
    Row("policy-unknown", field("scheduling.policy", "best"), ("scheduling.policy", "'best'")),
    Row("policy-setting", field("scheduling", {"policy": "constant", "rho": 0.1}),
        ("scheduling", "rho")),
    Row("reference-of-another-domain", field("scheduling.reference_loss", {"web": 1.0}),
        ("scheduling.reference_loss", "['web']")),
    Row("reference-word", field("scheduling.reference_loss", "sources"),
        ("scheduling.reference_loss", "write auto, source, none, nats by domain", "'sources'")),
    Row("source-of-nothing-pruned", both(field("scheduling.reference_loss", "source"),
        field("prune", ...), field("model.target", ...)),
        ("scheduling.reference_loss", "no model is pruned here", "{from_model: NAME}")),
    Row("source-of-another-policy", field("scheduling", {"policy": "constant",
        "reference_loss": "source"}), ("scheduling.reference_loss", "'constant'", "leave it out")),
    Row("source-and-start", field("scheduling", {"reference_loss": "source",
        "start": {"reference_loss": dict.fromkeys(DOMAINS, 1.0)}}),
        ("scheduling.reference_loss", "scheduling.start has reference losses too", "drop")),
    Row("sheared-with-nothing", both(field("scheduling", {"policy": "sheared"}),
        field("prune", ...), field("model.target", ...)),
        ("scheduling.reference_loss", "'sheared'", "from_model")),
    Row("preset-unknown", field("scheduling.reference", "sheared"),
        ("scheduling.reference", "'paper'", "'sheared'")),
    Row("preset-of-another-policy", field("scheduling", {"policy": "cvar", "reference": "paper"}),
        ("scheduling", "cvar has no setting reference")),
    Row("forecast-unknown", field("scheduling.forecast", "sometimes"),
        ("scheduling.forecast", "'combine', 'replace' or 'never'", "'sometimes'")),
    Row("forecast-never-with-nothing", field("scheduling", {"forecast": "never",
        "reference_loss": "none"}), ("scheduling.reference_loss", "could never move the ratio")),
    Row("forecast-at-unknown", field("scheduling.forecast_at", "end"),
        ("scheduling.forecast_at", "'equal', 'reference' or 'present'", "'end'")),
    Row("transfer-above-one", field("scheduling.transfer", 1.5),
        ("scheduling.transfer", "less than or equal to 1")),
    Row("tau-negative", field("scheduling.tau", -0.1),
        ("scheduling.tau", "greater than or equal to 0")),
    Row("relative-floor-too-high", field("scheduling.relative_floor", 1.5),
        ("scheduling.relative_floor", "less than or equal to 1")),
    Row("share-missing", field("data.domains.numbers.share", ...),
        ("data.domains", "numbers has no share", "data.smoothing")),
    Row("smoothing-without-need", field("data.smoothing", 0.3),
        ("data.domains", "every domain has a share", "leave data.smoothing out")),
    Row("smoothing-with-nothing-left", both(field("data.smoothing", 0.3),
        field("data.domains.colours.share", 0.9), field("data.domains.numbers.share", ...)),
        ("data.domains", "sum to 1", "leaves nothing for numbers")),
    Row("smoothing-beside-other-units", both(field("data.smoothing", 0.3),
        field("data.normalise_shares", True), field("data.domains.numbers.share", ...)),
        ("data.domains", "numbers has no share", "without normalise_shares")),
    Row("smoothing-above-one", both(field("data.smoothing", 3.0),
        field("data.domains.numbers.share", ...)),
        ("data.smoothing", "less than or equal to 1")),
    Row("floor-too-high", field("scheduling.floor", 0.5), ("scheduling", "floor")),
    Row("start-missing", field("scheduling.start", "none.yaml"),
        ("scheduling.start: none.yaml: No such file",)),
    Row("start-is-a-folder", field("scheduling.start", "model"),
        ("scheduling.start: model: Is a directory",)),
    Row("start-is-binary", field("scheduling.start", "model/model.safetensors"),
        ("scheduling.start: model/model.safetensors", "UTF-8")),
    Row("start-is-another-file", field("scheduling.start", "model/config.json"),
        ("scheduling.start", "unknown key", "ratio")),
    Row("precision-and-kernel", field("training.attention", "flash_attention_2"),
        ("training", "flash_attention_2", "precision: bf16")),
    Row("set-without-value", nothing, ("--set nothing", "key.path=value"), asked("nothing")),
    Row("set-empty-key", nothing, ("--set a..b=1", "key.path=value"), asked("a..b=1")),
    Row("set-below-a-value", nothing, ("--set output.x=1", "not a section"), asked("output.x=1")),
    Row("set-below-a-list", field("data.domains", []), ("--set", "domains is not a section"),
        asked("data.domains.web=1")),
    Row("set-not-yaml", nothing, ("--set output", "not valid YAML"), asked("output=[")),
    Row("set-unknown-key", nothing, ("prune.stepz", "'steps'"), asked("prune.stepz=3")),
    Row("command-unknown", nothing, ("No such command 'rum'",), ("rum", "recipe.yaml")),
    Row("option-unknown", nothing, ("No such option", "--sett"), (*PLAN, "--sett", "a=1")),
    Row("argument-missing", nothing, ("Missing argument", "RECIPE"), ("run",)),
]  # fmt: skip

TEXT = [
    Row("source-missing", source("none.jsonl"), ("data.domains.numbers.source", "none.jsonl")),
    Row("source-a-device", field("data.domains.numbers.source", "/dev/null"),
        ("data.domains.numbers.source: /dev/null is a device", "write the text to a file")),
    Row("source-a-lost-link", both(source("new.jsonl"), link("new.jsonl", "nowhere.jsonl")),
        ("data.domains.numbers.source: new.jsonl is a link to a file that does not exist",)),
    Row("validation-of-another-domain", field("data.domains.numbers.validation", "colours.jsonl"),
        ("data.domains.numbers.validation", "colours.jsonl", "training text of")),
    Row("source-of-another-kind", source("model/model.safetensors"),
        ("data.domains.numbers.source", "model.safetensors", "is not a .jsonl, .json, .csv")),
    Row("source-without-text", both(source("texts"), file("texts/LICENSE", "a"),
        file("texts/.old.jsonl", "{}")), ("data.domains.numbers.source", "folder texts has no",
        "1 hidden (.old.jsonl)", "1 of no kind that is read (LICENSE)")),
    Row("source-at-an-unknown-address", source("ftq://me:secret@host/a.jsonl"),
        ("data.domains.numbers.source: ftq://host/a.jsonl", "ftq:// is unknown", "s3://")),
    Row("source-file-address-missing", source("file:///none/a.jsonl"),
        ("data.domains.numbers.source", "file:///none/a.jsonl does not exist")),
    Row("source-glob", source("*.parquet"), ("data.domains.numbers.source", "*.parquet")),
    Row("source-empty-file", both(source("e.jsonl"), file("e.jsonl", "")),
        ("data.domains.numbers.source", "e.jsonl is empty")),
    Row("source-of-nobody", source("~nobody-here/x.jsonl"),
        ("data.domains.numbers.source", "~nobody-here")),
    Row("source-long-name", source("x/" + "y" * 300 + ".jsonl"), ("data.domains.numbers.source",)),
    Row("source-null-byte", source("a\0b.jsonl"), ("data.domains.numbers.source",)),
    Row("source-empty-name", source(""), ("data.domains.numbers.source", "is empty")),
    Row("source-twice", source("colours.jsonl"), ("data.domains.", "colours.jsonl", "where")),
    Row("validation-is-source", source("numbers.jsonl", validation="numbers.jsonl"),
        ("data.domains.numbers.validation", "numbers.jsonl", "hold documents out")),
    Row("validation-missing", source("numbers.jsonl", validation="none.jsonl"),
        ("data.domains.numbers.validation", "none.jsonl")),
    Row("text-field-empty", source("numbers.jsonl", text_field=""),
        ("data.domains.numbers.text_field", "is empty")),
    Row("root-missing", field("data.root", "nowhere"), ("data.domains.numbers.source", "nowhere")),
]  # fmt: skip

MODELS = [
    Row("model-missing", field("model.source", "no/such/model"), ("model.source", "no/such/model")),
    Row("model-not-on-the-hub", field("model.source", "nobody/none"),
        ("model.source", "nobody/none", "Hub", "give a folder")),
    Row("model-null-byte", field("model.source", "a\0b"), ("model.source",)),
    Row("model-long-name", field("model.source", "x" * 5000), ("File name too long",)),
    Row("model-is-a-file", field("model.source", "recipe.yaml"), ("model.source", "recipe.yaml")),
    Row("model-empty-name", field("model.source", ""), ("model.source",)),
    Row("config-missing", removed("model/config.json"), ("model.source", "config.json")),
    Row("config-is-a-list", file("model/config.json", "[1]"),
        ("model.source", "model/config.json", "object")),
    Row("config-is-a-number", file("model/config.json", "3"),
        ("model.source", "model/config.json", "object")),
    Row("config-no-json", file("model/config.json", "{"), ("model.source", "config.json", "JSON")),
    Row("config-binary", file("model/config.json", b"\xff\xff\xff"),
        ("model.source", "config.json")),
    Row("config-deep", file("model/config.json", DEEP), ("model.source", "config.json")),
    Row("config-tokenizer-odd-ids", replaced("model/tokenizer.json", b'"one": 2', b'"one": "2"'),
        ("model.source", "tokenizer.json", "not a tokenizer file")),
    Row("config-is-a-folder", both(removed("model/config.json"), file("model/config.json/x", "")),
        ("model.source", "config.json")),
    Row("config-text-size", config(hidden_size="32"),
        ("model.source", "hidden_size", "whole number", "'32'")),
    Row("config-negative-size", config(num_hidden_layers=-3),
        ("model.source", "num_hidden_layers", "at least 1")),
    Row("config-nan-size", config(intermediate_size=float("nan")),
        ("model.source", "intermediate_size", "nan")),
    Row("config-dropout", config(attention_dropout=2),
        ("model.source: model: the config's attention_dropout", "from 0 to below 1, not 2")),
    Row("config-rotary-base", config(rope_parameters={"rope_type": "default", "rope_theta": 0}),
        ("model.source: model: the config's rope_parameters.rope_theta", "not 0")),
    Row("config-layers-by-the-million", config(num_hidden_layers=10**7),
        ("model.source: model: num_hidden_layers must be at most 10,000",)),
    Row("config-encoder-decoder", config(is_encoder_decoder=True),
        ("model.source: model: a model with is_encoder_decoder true is not a causal",)),
    Row("config-classifier", config(architectures=["LlamaForSequenceClassification"]),
        ("model.source: model: LlamaForSequenceClassification is not a causal",)),
    Row("shape-of-ten-million-layers",
        shape({"num_layers": 10**6}, model_type="llama", num_hidden_layers=10**7),
        ("model.shape: num_hidden_layers must be at most 10,000",), PLAN),
    Row("config-no-type", config(model_type=None), ("model.source", "None", "docs/families.md")),
    Row("family-unknown", config(model_type="mamba", architectures=["MambaForCausalLM"]),
        ("model.source", "'mamba'", "docs/families.md", "llama")),
    Row("family-with-own-code", config(
        model_type="own", architectures=["OwnForCausalLM"],
        auto_map={"AutoModelForCausalLM": "modeling_own.Own"},
    ), ("model.source", "'own'", "docs/families.md")),
    Row("family-encoder", config(model_type="bert", architectures=["BertModel"]),
        ("model.source", "BertModel", "causal")),
    Row("architectures-text", config(architectures="Llama"),
        ("model.source", "architectures", "list")),
    Row("weights-pickled-only", renamed("model/model.safetensors", "model/pytorch_model.bin"),
        ("model.source", "no safetensors weights", "convert")),
    Row("weights-torn", cut("model/model.safetensors"),
        ("model.source", "model.safetensors", "not a complete safetensors file")),
    Row("weights-empty", file("model/model.safetensors", b""),
        ("model.source", "not a complete safetensors file")),
    Row("weights-no-header", file("model/model.safetensors", b"\xff" * 64),
        ("model.source", "not a complete safetensors file")),
    Row("weights-header-list", file("model/model.safetensors", b"\x02" + b"\0" * 7 + b"[]"),
        ("model.source", "not a complete safetensors file")),
    Row("weights-header-deep",
        file("model/model.safetensors", len(DEEP).to_bytes(8, "little") + DEEP.encode()),
        ("model.source", "not a complete safetensors file")),
    Row("weights-lead-nowhere", link("model/model.safetensors", "gone"),
        ("model.source", "no safetensors weights")),
    Row("weights-of-another-name", renamed("model/model.safetensors", "model/w.safetensors"),
        ("model.source", "no safetensors weights (model.safetensors")),
    Row("weights-shard-missing", both(
        renamed("model/model.safetensors", "model/a.safetensors"),
        file("model/model.safetensors.index.json", json.dumps(
            {"metadata": {}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}})),
    ), ("model.source", "model/b.safetensors is missing")),
    Row("weights-index-empty", both(
        renamed("model/model.safetensors", "model/a.safetensors"),
        file("model/model.safetensors.index.json", '{"weight_map": {}}'),
    ), ("model.source", "index.json is not complete")),
    Row("weights-of-half-the-size", replaced("model/model.safetensors", b'"F32"', b'"F16"'),
        ("model.source", "not a complete safetensors file")),
    Row("model-name-of-a-page", field("model.source", "https://example.com"),
        ("model.source", "no folder with a config.json, nor a name on the Hub")),
    Row("weights-of-an-unknown-type", both(whole_plan, replaced("model/model.safetensors",
        b'"F32"', b'"F99"')), ("MODEL: ", "is of type F99", "plain weights"),
        ("apply-plan", "plan.json", "model", "cut")),
    Row("weights-too-few", config(num_hidden_layers=4), ("model.source", "no weights for", "3")),
    Row("weights-too-many", config(num_hidden_layers=2), ("model.source", "lacks", "layers.2")),
    Row("weights-other-shape", config(intermediate_size=96), ("model.source", "48", "96")),
    Row("weights-index-names-pickle", file("model/model.safetensors.index.json",
        json.dumps({"weight_map": {"lm_head.weight": "pytorch_model.bin"}})),
        ("model.source", "pytorch_model.bin", "safetensors")),
    Row("weights-index-escapes", file("model/model.safetensors.index.json",
        json.dumps({"weight_map": {"lm_head.weight": "../other.safetensors"}})),
        ("model.source", "../other.safetensors")),
    Row("weights-index-broken", file("model/model.safetensors.index.json", "[]"),
        ("model.source", "model.safetensors.index.json")),
    Row("weights-quantised", config(quantization_config={"quant_method": "gptq", "bits": 4}),
        ("model.source", "quantization_config")),
    Row("weights-by-config", config(transformers_weights="adapter_model.bin"),
        ("model.source", "transformers_weights")),
    Row("kernel-from-the-hub", config(attn_implementation="somebody/kernel"),
        ("model.source", "attn_implementation", "somebody/kernel")),
    Row("adapter", file("model/adapter_config.json", '{"base_model_name_or_path": "other"}'),
        ("model.source", "adapter_config.json", "merge")),
    Row("tokenizer-missing", both(removed("model/tokenizer.json"),
        removed("model/tokenizer_config.json")), ("model.source", "tokenizer.json")),
    Row("tokenizer-broken", file("model/tokenizer.json", '{"model": {}}'),
        ("model.source", "tokenizer.json", "not a tokenizer file")),
    Row("tokenizer-deep", file("model/tokenizer.json", DEEP),
        ("model.source", "tokenizer.json", "not valid JSON")),
    Row("tokenizer-too-large", config(vocab_size=20), ("model.source", "does not fit", "26", "20")),
    Row("tokenizer-elsewhere", field("model.tokenizer", "nowhere/else/here"),
        ("model.tokenizer", "nowhere/else/here")),
    Row("bos-missing", field("data.bos", "always"),
        ("data.bos: the tokenizer model has no BOS token", "bos_token", "`bos: never`")),
    Row("eos-missing", replaced("model/tokenizer_config.json", b'"eos_token": "</s>"',
        b'"eos_token": null'), ("data.eos: the tokenizer model has no end-of-sequence token",
        "eos_token", "`eos: never`")),
    Row("shape-of-another", field("model.shape", {"model_type": "llama"}), ("model.shape",)),
]  # fmt: skip

GROUPED = {"num_attention_heads": 8, "num_key_value_heads": 2}
SHAPES = [
    Row("target-larger", field("model.target.hidden_size", 64),
        ("hidden_size 64", "the source's 32", "at most 32")),
    Row("target-own-shape", field("model.target", {"num_layers": 3}),
        ("model.target", "nothing would be pruned")),
    Row("target-names-nothing", field("model.target", {}), ("model.target", "num_layers")),
    Row("target-text", field("model.target.num_layers", "2"), ("model.target.num_layers", "'2'")),
    Row("target-like-missing", field("model.target", "no/such/model"),
        ("model.target", "no/such/model")),
    Row("target-like-itself", field("model.target", "model"),
        ("model.target", "nothing would be pruned")),
    Row("target-like-broken", both(field("model.target", "b.json"), file("b.json", "[")),
        ("model.target", "b.json", "JSON")),
    Row("budget-in-words", field("model.target", {"params": "lots"}),
        ("model.target.params", "1.3B", "'lots'")),
    Row("budget-too-large", field("model.target", {"params": "70B"}), ("model.target.params",)),
    Row("budget-tiny", field("model.target", {"params": 1}), ("model.target.params",)),
    Row("budget-infinite", field("model.target", {"params": float("inf")}),
        ("model.target.params", "1.3B")),
    Row("llama-heads", shape({"num_heads": 3}, model_type="llama"),
        ("hidden_size 32", "num_heads 3", "llama", "nearest shapes that work"), PLAN),
    Row("mistral-groups",
        shape({"num_heads": 3, "num_kv_heads": 2}, model_type="mistral", **GROUPED),
        ("num_heads 3 with num_kv_heads 2", "nearest shapes that work"), PLAN),
    Row("qwen2-groups",
        shape({"num_heads": 8, "num_kv_heads": 1}, model_type="qwen2", **GROUPED),
        ("num_heads 8 with num_kv_heads 1", "4 query heads", "nearest"), PLAN),
    Row("gemma2-groups",
        shape({"num_heads": 5}, model_type="gemma2", head_dim=8, **GROUPED),
        ("num_heads 5", "name num_kv_heads too", "nearest"), PLAN),
    Row("gpt-neox-width", shape({"hidden_size": 24}, model_type="gpt_neox"),
        ("hidden_size 24", "head size 8", "gpt_neox", "nearest shapes that work"), PLAN),
    Row("phi3-groups", shape({"num_heads": 4, "num_kv_heads": 2}, model_type="phi3"),
        ("num_kv_heads 2 with num_heads 4", "its own key-value head", "nearest"), PLAN),
    Row("olmo2-larger", shape({"intermediate_size": 49}, model_type="olmo2"),
        ("intermediate_size 49", "at most 48"), PLAN),
]  # fmt: skip

OUTPUTS = [
    Row("output-empty", field("output", " "), ("output", "name of a folder")),
    Row("output-null-byte", field("output", "a\0b"), ("output", "name of a folder")),
    Row("output-long", field("output", "x" * 300), ("output", "cannot be a folder")),
    Row("output-is-a-file", field("output", "recipe.yaml"), ("output", "recipe.yaml is a file")),
    Row("output-below-a-file", field("output", "recipe.yaml/out"),
        ("output: recipe.yaml is a file",)),
    Row("output-leads-nowhere", link("out", "gone"), ("output: out is a link that leads nowhere",)),
    Row("output-of-itself", link("out", "out"), ("output: out is a link that leads nowhere",)),
    Row("output-is-here", field("output", "."),
        ("output: the recipe.yaml in .", "was not written by a run")),
    Row("output-where-nothing-can-be", field("output", "/proc/x"),
        ("output: /proc/x cannot be made (", "name another folder"), PLAN),
    Row("output-of-nobody", field("output", "~nobody-here/run"),
        ("output: there is no user nobody-here; write ./~nobody-here for a folder of that name",)),
    Row("output-of-no-variable", field("output", "$NOT_SET_HERE/run"),
        ("output: the environment variable NOT_SET_HERE is not set; set it, or write $$ for a $",
         "not '$NOT_SET_HERE/run'")),
    Row("model-of-no-variable", field("model.source", "models/${NOT_SET_HERE}"),
        ("model.source: the environment variable NOT_SET_HERE is not set",)),
    Row("text-of-a-dollar", field("data.domains.numbers.source", "a$/b"),
        ("data.domains.numbers.source: a $ without the name of an environment variable",)),
    Row("like-of-no-variable", field("model.target", "$NOT_SET_HERE"),
        ("model.target.like: the environment variable NOT_SET_HERE is not set",)),
    Row("reference-of-no-variable", field("scheduling.reference_loss", {"from_model": "$NOT_SET"}),
        ("scheduling.reference_loss", "the environment variable NOT_SET is not set")),
    Row("start-of-no-variable", field("scheduling.start", "$NOT_SET_HERE/start.yaml"),
        ("scheduling.start: the environment variable NOT_SET_HERE is not set",
         "not '$NOT_SET_HERE/start.yaml'")),
    Row("output-in-the-model", field("output", "model/run"),
        ("output: model/run lies in model, which model.source names",)),
    Row("output-in-the-text", both(folder_of_text, field("output", "text/run")),
        ("output: text/run lies in text, which data.domains.numbers.source names",)),
    Row("output-log-elsewhere", both(begun, link("out/metrics.jsonl", "../recipe.yaml")),
        ("output: out/metrics.jsonl is a link to another place",)),
    Row("prepared-in-the-model", field("data.prepared", "model/data"),
        ("data.prepared: model/data lies in model",)),
    Row("prepared-as-a-result", field("data.prepared", "out/pruned"),
        ("data.prepared: out/pruned lies among the files of the run",)),
    Row("prepared-other-types", file("out/data/manifest.json", json.dumps({
        "version": 3, "fingerprint": "a", "dtype": "O", "sequence_length": 16, "domains": {},
        "tokenized": {}, "places": {"../a": {"source": "a", "validation": None}},
        "identity": {"tokenizer": "a", "settings": {}, "domains": {"../a": {}}},
    })), ("out/data/manifest.json is damaged",)),
    Row("prepared-by-an-earlier-version", file("out/data/manifest.json", '{"version": 2}'),
        ("out/data/manifest.json has version 2", "reads 3", "prepare again")),
    Row("output-is-the-model", field("output", "model"), ("output", "holds no run")),
    Row("output-of-another-recipe", both(
        begun,
        field("prune.steps", 6),
        file("out/checkpoints/prune-00000002/state.json", "{}"),
    ), ("output", "prune.steps (saved 4, now 6)", "another output", "out/data")),
    Row("output-of-another-program", file("out/recipe.yaml", "dish: soup\n"),
        ("out/recipe.yaml", "dish: unknown key")),
    Row("output-damaged", file("out/recipe.yaml", b"\xff\xfe"), ("out/recipe.yaml", "UTF-8")),
    Row("output-moved-here", both(
        lambda place: LoggedRun(place / "out", ("prune",)), file("out/sessions.jsonl", "{}\n"),
    ), ("output", "holds the run of another recipe")),
    Row("prepared-is-a-file", field("data.prepared", "recipe.yaml"),
        ("data.prepared", "recipe.yaml is a file")),
    Row("prepared-long", field("data.prepared", "x" * 300),
        ("data.prepared", "cannot be a folder")),
    Row("prepared-is-the-model", field("data.prepared", "model"),
        ("data.prepared", "model", "another folder")),
    Row("prepared-damaged", file("out/data/manifest.json", "{}"),
        ("out/data/manifest.json", "damaged", "prepare again")),
    Row("prepared-deep", file("out/data/manifest.json", DEEP),
        ("out/data/manifest.json", "damaged")),
    Row("reference-model-missing", field("scheduling.reference_loss", {"from_model": "no/such/m"}),
        ("scheduling.reference_loss", "no/such/m")),
    Row("reference-model-torn", both(
        field("scheduling.reference_loss", {"from_model": "large"}),
        lambda place: shutil.copytree(place / "model", place / "large"),
        cut("large/model.safetensors"),
    ), ("scheduling.reference_loss", "large/model.safetensors", "not a complete")),
    Row("result-was-emptied", lambda place: [begun(place), (place / "out/pruned").mkdir()],
        ("out/pruned: the model that prune wrote is not complete", "config.json", "to prune again"),
        ("pretrain", "recipe.yaml")),
    Row("result-without-weights", both(begun, file("out/model/config.json", "{}")),
        ("out/model: the model that pretrain wrote", "model.safetensors", "remove the folder")),
    Row("larger-target-was-emptied", both(
        field("model", {"source": "model", "targets": {
            "large": {"num_layers": 2}, "small": {"num_layers": 1}}}),
        begun, file("out/large/pruned/README.md", ""),
    ), ("out/large/pruned: the model that prune wrote is not complete",)),
    Row("prepared-is-no-data", file("out/data/thesis.txt", "mine"),
        ("data.prepared", "out/data", "another folder")),
]  # fmt: skip

PLANS = [
    Row("show-nothing", nothing, ("none: no pruning plan",), ("show-plan", "none")),
    Row("show-empty-object", file("plan.json", "{}"), ("plan.json", "version 1"),
        ("show-plan", "plan.json")),
    Row("show-text", nothing, ("recipe.yaml", "not valid JSON"), ("show-plan", "recipe.yaml")),
    Row("show-weights", nothing, ("model.safetensors", "cannot read"),
        ("show-plan", "model/model.safetensors")),
    Row("show-deep", file("plan.json", DEEP), ("plan.json", "JSON"), ("show-plan", "plan.json")),
    Row("show-parts-of-a-plan", file("plan.json", '{"version": 1, "source": {}}'),
        ("plan.json", "lacks"), ("show-plan", "plan.json")),
    Row("show-long-name", nothing, ("File name too long",), ("show-plan", "x" * 5000)),
    Row("compare-same", file("a.json", "{}"), ("a.json",), ("compare-plans", "a.json", "a.json")),
    Row("compare-without-history", nothing, ("model", "history of plans"),
        ("compare-plans", "model")),
    Row("compare-broken-history", file("run/prune/plans.jsonl", "{}\n"),
        ("plans.jsonl, line 1",), ("compare-plans", "run")),
    Row("apply-nothing", nothing, ("none: no pruning plan",),
        ("apply-plan", "none", "model", "cut")),
    Row("evaluate-nothing", nothing, ("none: neither a run folder nor a model folder",),
        ("evaluate", "none")),
    Row("evaluate-an-adapter", file("there/adapter_config.json", "{}"),
        ("MODEL: there is an adapter", "merge"), ("evaluate", "there", "--data", "run")),
    Row("evaluate-gguf", file("there.gguf", ""),
        ("MODEL: there.gguf", "GGUF"), ("evaluate", "there.gguf", "--data", "run")),
    Row("evaluate-without-data", nothing, ("model", "--data RUN"), ("evaluate", "model")),
    Row("report-nothing", nothing, ("none is not a run folder",), ("report", "none")),
    Row("report-of-a-model", nothing, ("model has nothing to show",), ("report", "model")),
    Row("report-long-name", nothing, ("File name too long",), ("report", "x" * 5000)),
    Row("report-png-without-folder", nothing, ("--png: needs", "--figures FOLDER"),
        ("report", "model", "--png")),
    Row("report-broken-log", both(logged(), file("run/metrics.jsonl", "{}\n")),
        ("metrics.jsonl, line 1", "'kind'"), ("report", "run")),
    Row("report-deep-log", both(logged(), file("run/metrics.jsonl", DEEP + "\n")),
        ("metrics.jsonl, line 1",), ("report", "run")),
    Row("watch-not-begun", nothing, ("none: no run has begun here yet",), ("watch", "none")),
    Row("watch-a-file", nothing, ("recipe.yaml: not a folder",), ("watch", "recipe.yaml")),
    Row("watch-a-model", nothing, ("model: no run folder", "sessions.jsonl"), ("watch", "model")),
    Row("watch-long-name", nothing, ("File name too long",), ("watch", "x" * 5000)),
    Row("watch-broken-log", both(logged(), file("run/metrics.jsonl", '{"kind": 3}\n')),
        ("metrics.jsonl, line 1", "'kind'"), ("watch", "run")),
    Row("watch-broken-recipe", both(logged(), file("run/recipe.yaml", "- a\n")),
        ("run/recipe.yaml", "mapping"), ("watch", "run")),
    Row("watch-no-time", logged(), ("--every",), ("watch", "run", "--every", "0")),
    Row("replay-nothing", nothing, ("none", "no such directory"), ("replay", "none")),
    Row("replay-of-a-model", nothing, ("model",), ("replay", "model")),
    Row("replay-binary-log", both(logged(), file("run/metrics.jsonl", b"\xff\n")),
        ("metrics.jsonl, line 1",), ("replay", "run")),
    Row("replay-number-as-text", both(logged(), file("run/metrics.jsonl",
        '{"kind": "eval", "phase": "prune", "step": 0, "loss": {"web": "2"}}\n')),
        ("metrics.jsonl, line 1", "'loss.web'"), ("replay", "run")),
    Row("replay-policy", logged(), ("--policy best", "group_dro"),
        ("replay", "run", "--policy", "best")),
    Row("replay-setting", logged(), ("scheduling.rh", "'rho'"), ("replay", "run", "--set", "rh=1")),
    Row("replay-setting-nan", logged(), ("scheduling.rho", "finite"),
        ("replay", "run", "--set", "rho=.nan")),
    Row("replay-phase", logged("prune"), ("--phase pretrain", "prune"),
        ("replay", "run", "--phase", "pretrain")),
    Row("replay-output-kind", logged(), ("--output a.txt", ".html or .json"),
        ("replay", "run", "--output", "a.txt")),
    Row("replay-output-folder", logged(), ("--output recipe.yaml/a.json",),
        ("replay", "run", "--output", "recipe.yaml/a.json")),
    Row("export-nothing", nothing, ("none", "no such directory"), ("export-schedule", "none")),
    Row("export-before-training", both(logged(), file("run/metrics.jsonl", "")),
        ("run: no evaluation",), ("export-schedule", "run")),
    Row("export-phase", logged("prune"), ("--phase pretrain", "choose one of prune"),
        ("export-schedule", "run", "--phase", "pretrain")),
    Row("export-over-a-file", logged(), ("--output recipe.yaml", "name another"),
        ("export-schedule", "run", "--output", "recipe.yaml")),
    Row("reference-nothing", nothing, ("none.yaml: No such file",),
        ("reference-loss", "none.yaml")),
    Row("reference-of-a-model", nothing, ("model: no run here",), ("reference-loss", "model")),
    Row("reference-two-models", nothing, ("--model", "three or more"),
        ("reference-loss", "recipe.yaml", "--model", "a", "--model", "b")),
    Row("reference-set-of-a-run", logged(), ("--set", "name a recipe"),
        ("reference-loss", "run", "--set", "output=x")),
]  # fmt: skip

CUT = [
    Row("apply-to-another-model", both(whole_plan, config(hidden_size=24)),
        ("MODEL", "another model", "hidden_size 24, not 32"),
        ("apply-plan", "plan.json", "model", "cut")),
    Row("apply-to-pickles", both(whole_plan, renamed("model/model.safetensors", "model/m.bin")),
        ("MODEL", "no safetensors weights"), ("apply-plan", "plan.json", "model", "cut")),
    Row("apply-over-files", whole_plan, ("OUTPUT: model", "not empty"),
        ("apply-plan", "plan.json", "model", "model")),
    Row("apply-below-a-file", whole_plan, ("OUTPUT: recipe.yaml is a file",),
        ("apply-plan", "plan.json", "model", "recipe.yaml/cut")),
]  # fmt: skip

EARLY = [*RECIPES, *TEXT, *MODELS, *SHAPES, *OUTPUTS, *PLANS, *CUT]
