"""Wrong recipes, files, models and command lines: one message, status 2, everything as it was."""

import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from typer.testing import CliRunner

from drpruning.cli.commands import app
from drpruning.data.memory import MEMORY_PER_BYTE
from drpruning.data.readers import RowReader
from helpers.damaged_places import Place, Row, both, complaint, config, field, file, nothing
from helpers.invalid_init import REFUSED_INIT
from helpers.invalid_inputs import DEEP, lines, parquet, source
from helpers.invalid_inputs import EARLY as COMMON
from helpers.invalid_models import REFUSED_MODELS
from helpers.invalid_tasks import REFUSED_TASKS
from helpers.invalid_teachers import REFUSED_TEACHERS

EARLY = [*COMMON, *REFUSED_INIT, *REFUSED_MODELS, *REFUSED_TASKS, *REFUSED_TEACHERS]

CHILD = """
import json, os, signal, sys, traceback
from typer.testing import CliRunner
from drpruning.cli.commands import app
def too_long(*_):
    raise AssertionError("this takes for ever")
signal.signal(signal.SIGALRM, too_long)
found = {}
for name, folder, arguments in json.load(sys.stdin):
    os.chdir(folder)
    signal.alarm(20)
    result = CliRunner().invoke(app, arguments)
    stderr = result.stderr
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        stderr += "".join(traceback.format_exception(result.exception))
    found[name] = [result.exit_code, stderr, "torch" in sys.modules]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory, text_folder: Path, model_folder: Path
) -> dict[str, tuple[int, str, bool, bool]]:
    """Row -> status, what was said, whether torch was there, whether all is as it was.

    One process runs them all, one after the other.
    """
    home = tmp_path_factory.mktemp("early")
    places = {row.name: Place(home / row.name, text_folder, model_folder) for row in EARLY}
    for row in EARLY:
        row.spoil(places[row.name])
    before = {name: place.tree() for name, place in places.items()}
    jobs = [(row.name, str(home / row.name), row.arguments) for row in EARLY]
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(jobs), capture_output=True, text=True,
        check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: (*found[name], places[name].tree() == before[name]) for name in places}


@pytest.mark.parametrize("row", EARLY, ids=lambda row: row.name)
def test_refused_before_torch_is_imported(
    outcomes: dict[str, tuple[int, str, bool, bool]], row: Row
) -> None:
    status, stderr, torch_imported, unchanged = outcomes[row.name]
    complaint(row, status, stderr)
    assert unchanged
    assert not torch_imported


GOOD = json.dumps({"text": "one two three " * 20})
FEW = b"".join(json.dumps({"text": "one two"}).encode() + b"\n" for _ in range(3))
SOME = gzip.compress(FEW * 2000)
LATE = [
    Row("line-not-utf8", file("numbers.jsonl", FEW + b'{"text": "\xff"}\n'),
        ("numbers.jsonl:4", "UTF-8 at byte 10")),
    Row("line-not-json", lines(GOOD, '{"text": '), ("numbers.jsonl:2", "not valid JSON")),
    Row("line-deep", lines(GOOD, DEEP), ("numbers.jsonl:2", "nested too deeply")),
    Row("line-no-object", lines("[1]"), ("numbers.jsonl:1", "JSON object")),
    Row("line-without-text", lines(GOOD, '{"body": "x", "id": 1}'),
        ("data.domains.numbers.text_field", "numbers.jsonl:2", "'text'", "body, id")),
    Row("line-with-a-number", lines('{"text": 3}'),
        ("data.domains.numbers.text_field", "numbers.jsonl:1 has 3 in 'text'")),
    Row("gzip-torn", source("n.jsonl.gz", SOME[: len(SOME) // 2]),
        ("data.domains.numbers.source", "n.jsonl.gz cannot be read")),
    Row("gzip-none", source("n.jsonl.gz", FEW), ("data.domains.numbers.source", "n.jsonl.gz")),
    Row("zstd-torn", source("n.jsonl.zst", zstandard.compress(FEW * 2000)[:-9]),
        ("data.domains.numbers.source", "n.jsonl.zst cannot be read")),
    Row("zstd-none", source("n.jsonl.zst", FEW),
        ("data.domains.numbers.source", "n.jsonl.zst", "not valid zstandard")),
    Row("parquet-other-column", source("n.parquet", parquet(body="one two")),
        ("data.domains.numbers.source", "n.parquet has no field 'text'", "body")),
    Row("parquet-numbers", source("n.parquet", parquet(text=3)),
        ("data.domains.numbers.text_field", "n.parquet:1 has 3 in 'text'")),
    Row("parquet-torn", source("n.parquet", parquet(text="one two")[:-9]),
        ("data.domains.numbers.source", "n.parquet")),
    Row("parquet-not-utf8",
        source("n.parquet", parquet(text="one two").replace(b"one", b"\xff\xff\xff")),
        ("data.domains.numbers.source", "n.parquet: row 1", "write the file again")),
    Row("parquet-names-twice",
        both(source("n.parquet", parquet(m=pa.scalar(
            [("x", "one"), ("x", "two")], pa.struct([("x", pa.string()), ("x", pa.string())])))),
             field("data.domains.numbers.text_field", "m.x")),
        ("data.domains.numbers.source", "n.parquet", "several fields of the name 'm.x'")),
    Row("parquet-of-no-known-zone",
        both(source("n.parquet", parquet(
            text="one", at=pa.scalar(1, pa.timestamp("s", "No/Zone")))),
             field("data.domains.numbers.where", {"at": 1})),
        ("data.domains.numbers.source", "n.parquet: row 1", "column 'at'", "plain text")),
    Row("where-fits-no-long-value",
        both(lines(json.dumps({"text": "one", "kind": "b" * 10**5})),
             field("data.domains.numbers.where", {"kind": "a"})),
        ("data.domains.numbers.source", "kind = 'bbb", "...")),
    Row("fields-by-the-hundred", lines(json.dumps(dict.fromkeys(map(str, range(200))))),
        ("data.domains.numbers.text_field", "18, 19 and 180 more")),
    Row("number-of-5000-digits", lines('{"text": "one", "id": ' + "9" * 5000 + "}"),
        ("numbers.jsonl:1", "more than 4,300 digits")),
    Row("source-is-a-format", source("json"),
        ("data.domains.numbers.source", "json is no dataset but a format")),
    Row("config-of-no-model", config(bos_token_id="x"),
        ("model.source", "the config.json of model does not make a model")),
    Row("config-of-no-type", config(use_cache="x"),
        ("model.source", "the config.json of model does not make a model", "use_cache")),
    Row("text-not-utf8", source("n.txt", b"one \xff"), ("n.txt", "UTF-8 at byte 4")),
    Row("text-compressed-torn", source("n.txt.gz", gzip.compress(b"one two", mtime=0)[:-3]),
        ("data.domains.numbers.source", "n.txt.gz cannot be read")),
    Row("array-ends-early", source("n.json", b'[{"text": "one"}, {"text": "two"}'),
        ("n.json:2", "the array ends early", "write the file again")),
    Row("array-of-numbers", source("n.json", b"[1, 2]"),
        ("n.json:1", "an object is expected", "one a line")),
    Row("array-not-utf8", source("n.json", b'[{"text": "\xff"}]'), ("n.json", "UTF-8")),
    Row("csv-quote-open", source("n.csv", b'text,id\n"one,1\n'),
        ("n.csv:2", "not valid CSV", "quotes in them twice")),
    Row("csv-ragged", source("n.csv", b"text,id\none,1,2\n"),
        ("n.csv:2: 3 fields", "the header has 2", "double quotes")),
    Row("csv-names-twice", source("n.csv", b"text,text\none,two\n"),
        ("n.csv", "several columns have one name", "rename")),
    Row("csv-without-the-field", source("n.tsv", b"body\tid\none\t1\n"),
        ("data.domains.numbers.text_field", "n.tsv:2 has no field 'text'", "body, id")),
    Row("csv-not-utf8", source("n.csv", b"text\n\xff\n"), ("n.csv", "UTF-8")),
    Row("address-of-nothing", source("memory://nowhere/a.jsonl"),
        ("data.domains.numbers.source", "memory://nowhere/a.jsonl does not exist")),
    Row("documents-empty", lines('{"text": ""}', '{"text": " "}', '{"text": null}'),
        ("data.domains.numbers.source", "all 3 documents are empty")),
    Row("where-fits-nothing",
        both(lines('{"text": "one", "kind": "b"}'),
             field("data.domains.numbers.where", {"kind": "a"})),
        ("data.domains.numbers.source", "no document fits", "kind = 'b'")),
    Row("text-too-short", lines('{"text": "one two"}'),
        ("data.domains.numbers", "validation block of 16", "more or shorter documents")),
    Row("validation-too-short",
        both(source("numbers.jsonl", validation="v.jsonl"), file("v.jsonl", '{"text": "one"}')),
        ("data.domains.numbers.validation", "one block of 16")),
    Row("dataset-not-on-the-hub", source("nobody/none"),
        ("data.domains.numbers.source", "nobody/none", "Hugging Face dataset")),
    Row("tokenizer-without-end", file("model/tokenizer_config.json", "{}"),
        ("tokenizer model", "end-of-sequence", "tokenizer_config.json")),
    Row("tokenizer-of-one-word", file("model/tokenizer.json", '{"model": {"vocab": {"a": 0}}}'),
        ("tokenizer model", "cannot be loaded", "model.tokenizer")),
]  # fmt: skip


@pytest.mark.parametrize("row", LATE, ids=lambda row: row.name)
def test_refused_and_undone(
    row: Row, tmp_path: Path, text_folder: Path, model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    place = Place(tmp_path / "place", text_folder, model_folder)
    row.spoil(place)
    before = place.tree()
    monkeypatch.chdir(place.folder)
    for package in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{package}.HF_HUB_OFFLINE", True)
    result = CliRunner().invoke(app, row.arguments)
    complaint(row, result.exit_code, result.stderr)
    assert place.tree() == before


def refused(place: Place, *words: str, command: str = "prepare") -> None:
    """The command says these words of the place, and leaves it as it was."""
    before = place.tree()
    result = CliRunner().invoke(app, [command, "recipe.yaml"])
    complaint(Row(command, nothing, words), result.exit_code, result.stderr)
    assert place.tree() == before


@pytest.mark.parametrize(
    "name", ["n.jsonl", "n.jsonl.gz", "n.txt", "n.txt.gz", "n.json", "n.csv", "n.parquet"]
)
def test_a_document_that_memory_does_not_allow(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    text = "one two three " * 10_000
    kinds = {
        "n.jsonl": f"{GOOD}\n{json.dumps({'text': text})}".encode(),
        "n.jsonl.gz": gzip.compress(json.dumps({"text": text}).encode()),
        "n.txt": text.encode(),
        "n.txt.gz": gzip.compress(text.encode()),
        "n.json": json.dumps([{"text": text}]).encode(),
        "n.csv": f"text\n{text}\n".encode(),
        "n.parquet": parquet(text=text),
    }
    source(name, kinds[name])(place)
    monkeypatch.setattr("drpruning.data.documents._LONG", 1000)
    monkeypatch.setattr("drpruning.data.memory.free_memory", lambda: 2 * len(text))
    line_number = ":2" if name == "n.jsonl" else ""
    refused(place, f"{name}{line_number}", "too long for the memory", "split it")
    monkeypatch.setattr("drpruning.data.memory.free_memory", lambda: 20 * len(text))
    field("data.domains.numbers.validation", "v.jsonl")(place)
    place.write("v.jsonl", GOOD)
    assert CliRunner().invoke(app, ["prepare", "recipe.yaml"]).exit_code == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is Linux's")
def test_memory_for_a_long_document_is_what_is_asked_for(place: Place) -> None:
    size = 32_000_000
    place.write("long.jsonl", json.dumps({"text": "one two three " * (size // 14)}))
    place.write("v.jsonl", GOOD)
    child = """
from drpruning.data import DomainSource, prepare
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
def make(source):
    domain = DomainSource(name="a", source=source, validation="v.jsonl")
    prepare([domain], tokenizer="model", vocab_size=None, sequence_length=16,
            validation_blocks=1, folder=f"prepared-{source}", workers=1)
make("numbers.jsonl")
before = peak()
make("long.jsonl")
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", child], capture_output=True, text=True, check=True, cwd=place.folder
    )
    assert int(done.stdout) < MEMORY_PER_BYTE * size


@pytest.mark.parametrize("option", ["output", "data.prepared"])
def test_a_place_that_cannot_be_written_to(
    place: Place, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    field(option, "locked/out")(place)
    (place / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, *_: Path(path).name != "locked")
    refused(place, f"{option}: locked cannot be written to", "name another folder")
    assert not list((place / "locked").iterdir())


def test_a_file_system_that_turns_out_to_be_read_only(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.mkdir

    def mkdir(path: Any, *arguments: Any) -> None:
        if Path(path).name == "out":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        make(path, *arguments)

    monkeypatch.setattr(os, "mkdir", mkdir)
    refused(place, "out: Read-only file system", "name another place")
    assert not (place / "out").exists()


def test_what_was_refused_can_be_put_right_in_the_recipe_and_keeps_finished_domains(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    field("data.domains.colours.text_field", "body")(place)
    result = CliRunner().invoke(app, ["prepare", "recipe.yaml"])
    assert result.exit_code == 2
    assert {path.name for path in (place / "out").iterdir()} == {"data"}
    prepared = {path.name for path in (place / "out/data").iterdir()}
    assert prepared == {".cache", ".lock", "manifest.json"}
    assert {path.name for path in (place / "out/data/.cache").iterdir()} == {"numbers"}
    read, file_rows = [], RowReader._file_rows
    monkeypatch.setattr(
        RowReader, "_file_rows", lambda self, file: read.append(file.stem) or file_rows(self, file)
    )
    field("data.domains.colours.text_field", "text")(place)
    result = CliRunner().invoke(app, ["prepare", "recipe.yaml"])
    assert result.exit_code == 0, result.output
    assert read == ["colours", "animals"]


def test_a_checkpoint_of_another_project(place: Place) -> None:
    assert CliRunner().invoke(app, ["prepare", "recipe.yaml"]).exit_code == 0
    home = "out/checkpoints/prune-00000002"
    shutil.copytree(place / "model", place / home)
    place.write(f"{home}/state.json", "{}")
    result = CliRunner().invoke(app, ["prune", "recipe.yaml"])
    row = Row("checkpoint", nothing, ("out/checkpoints", "prune-00000002", "remove"))
    complaint(row, result.exit_code, result.stderr)
    assert (place / home / "model.safetensors").is_file()
    assert not (place / "out/metrics.jsonl").exists()


def test_several_targets_are_undone_as_well(place: Place) -> None:
    place.recipe["model"] = {"source": "model", "targets": {"a": {"num_layers": 2}}}
    place.save()
    place.write("numbers.jsonl", "[1]")
    refused(place, "numbers.jsonl:1", "JSON object", command="run")
    assert not (place / "out").exists()


def test_the_table_is_long_and_every_row_is_another() -> None:
    rows = [*EARLY, *LATE]
    assert len({row.name for row in rows}) == len(rows) >= 60
