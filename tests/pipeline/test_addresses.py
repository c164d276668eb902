"""Prepared data whose text is at an address, or gone, are used only as they were prepared."""

import json
from collections.abc import Iterator

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

from drpruning.cli.commands import app
from helpers.damaged_places import Place, field

ADDRESS = "memory://bucket/numbers"


@pytest.fixture
def bucket(place: Place) -> Iterator[MemoryFileSystem]:
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/numbers/a.jsonl", (place / "numbers.jsonl").read_bytes())
    system.pipe("/bucket/numbers/LICENSE", b"free")
    (place / "numbers.jsonl").unlink()
    field("data.domains.numbers.source", ADDRESS)(place)
    field("data.root", str(place.folder))(place)
    yield system
    if system.exists("/bucket"):
        system.rm("/bucket", recursive=True)


def drprune(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == status, result.output
    return " ".join(result.output.split())


def test_text_at_an_address_is_needed_once(place: Place, bucket: MemoryFileSystem) -> None:
    said = drprune("plan", "recipe.yaml")
    assert "not known yet" in said
    said = drprune("prepare", "recipe.yaml")
    assert f"not read in {ADDRESS}: 1 of no kind that is read (LICENSE)" in said
    assert "prepared numbers: 120 documents" in said
    manifest = (place / "out/data/manifest.json").read_bytes()
    assert json.loads(manifest)["places"]["numbers"]["source"] == ADDRESS
    bucket.rm("/bucket", recursive=True)
    assert "is at an address and not looked at again" in drprune("plan", "recipe.yaml")
    assert "prepared numbers: 120 documents" in drprune("prepare", "recipe.yaml")
    assert (place / "out/data/manifest.json").read_bytes() == manifest
    # Another address is other text, which has to be there.
    field("data.domains.numbers.source", f"{ADDRESS}2")(place)
    said = drprune("prepare", "recipe.yaml", status=2)
    assert f"data.domains.numbers.source: {ADDRESS}2 does not exist" in said


def test_files_beside_the_text_are_named_by_plan_and_prepare(place: Place) -> None:
    place.write("text/a.JSONL", (place / "numbers.jsonl").read_bytes())
    place.write("text/README.md", "about it")
    field("data.domains.numbers.source", "text")(place)
    line = "data.domains.numbers.source: not read in text: 1 of no kind that is read (README.md)"
    assert line in drprune("plan", "recipe.yaml")
    assert drprune("prepare", "recipe.yaml").count(line) == 1
    assert line not in drprune("prepare", "recipe.yaml")  # nothing is read again


@pytest.mark.usefixtures("place")
def test_the_markers_are_part_of_what_was_prepared() -> None:
    drprune("prepare", "recipe.yaml")
    said = drprune("prepare", "recipe.yaml", "--set", "data.eos=never", status=2)
    assert "eos_id (saved 0, now None)" in said
    assert "run together" in drprune("plan", "recipe.yaml", "--set", "data.eos=never")
    drprune("prepare", "recipe.yaml", "--set", "data.eos=always")  # the same tokens


def test_data_of_other_settings_do_not_stand_for_missing_text(place: Place) -> None:
    """Where the text is there, preparing compares all settings."""
    tokenizer, config = (place / f"model/{name}.json" for name in ("tokenizer", "tokenizer_config"))
    content = json.loads(tokenizer.read_text())
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 1, "content": "<unk>"})
    tokenizer.write_text(json.dumps(content))
    drprune("prepare", "recipe.yaml")
    (place / "numbers.jsonl").unlink()
    assert "the data prepared from it are used" in drprune("prepare", "recipe.yaml")
    only_evaluated = ("data.domains.numbers.share=0", "data.normalise_shares=true")
    for changes in (["data.special_tokens=parse"], ["data.eos=never"], only_evaluated):
        options = [part for change in changes for part in ("--set", change)]
        said = drprune("prepare", "recipe.yaml", *options, status=2)
        assert "data.domains.numbers.source: numbers.jsonl does not exist" in said
    # It splits text as before; only what ends a document is another token.
    config.write_text(config.read_text().replace('"eos_token": "</s>"', '"eos_token": "<unk>"'))
    said = drprune("prepare", "recipe.yaml", status=2)
    assert "made with something else than the recipe names (the tokenizer)" in said
