"""The table of wrong flags of `drprune init`, and of places for what `drprune schema` writes."""

from helpers.damaged_places import Row, file, nothing


def init(*flags: str) -> tuple[str, ...]:
    """`drprune init` of a new file, with a model, text and all other answers, and these flags."""
    return ("init", "new.yaml", "--yes", "--model", "model", "--domain", "numbers.jsonl", *flags)


REFUSED_INIT = [
    Row("init-over-a-recipe", nothing, ("recipe.yaml: exists", "--force"),
        ("init", "--model", "model", "--domain", "numbers.jsonl", "--yes")),
    Row("init-over-a-folder", nothing, ("RECIPE model", "no name of a file"),
        ("init", "model", "--force", "--model", "model", "--domain", "numbers.jsonl", "--yes")),
    Row("init-without-answers", nothing, ("no terminal", "--model", "--domain", "--yes"),
        ("init", "new.yaml")),
    Row("init-without-text", nothing, ("no terminal", "give --domain"),
        ("init", "new.yaml", "--model", "model", "--yes")),
    Row("init-model-is-no-model", nothing, ("model.source", "numbers.jsonl"),
        ("init", "new.yaml", "--model", "numbers.jsonl", "--domain", "numbers.jsonl", "--yes")),
    Row("init-model-of-a-variable", nothing, ("model.source", "NOT_SET_AT_ALL is not set"),
        ("init", "new.yaml", "--model", "$NOT_SET_AT_ALL", "--domain", "t", "--yes")),
    Row("init-text-is-gone", nothing, ("data.domains.gone.source", "does not exist"),
        init("--domain", "gone.jsonl")),
    Row("init-text-has-no-place", nothing, ("--domain web=", "NAME=PATH"),
        init("--domain", "web=")),
    Row("init-text-without-text", file("pictures/a.png", "x"), ("--domain pictures", ".jsonl"),
        init("--domain", "pictures")),
    Row("init-one-name-twice", nothing, ("--domain", "two domains numbers"),
        init("--domain", "numbers=colours.jsonl")),
    Row("init-one-file-twice", nothing, ("data.domains.other.source", "used by data.domains.numb"),
        init("--domain", "other=numbers.jsonl")),
    Row("init-target-beyond", nothing, ("--target", "no shape of"), init("--params", "9T")),
    Row("init-target-unknown-key", nothing, ("--target", "did you mean 'num_layers'"),
        init("--target", "{num_layerz: 2}")),
    Row("init-target-larger", nothing, ("--target", "num_layers"),
        init("--target", "{num_layers: 99}")),
    Row("init-target-the-same", nothing, ("--target", "model's own shape"),
        init("--target", "{num_layers: 3}")),
    Row("init-target-no-yaml", nothing, ("--target", "not valid YAML"), init("--target", "[1")),
    Row("init-output-in-the-model", nothing, ("output: model",), init("--output", "model")),
    Row("schema-over-another-file", nothing, ("--output recipe.yaml", "not written by this"),
        ("schema", "-o", "recipe.yaml")),
]  # fmt: skip
