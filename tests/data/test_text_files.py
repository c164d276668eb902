"""No file of a folder is lost without a word, and every kind of file gives its documents."""

import csv
import gzip
import io
import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from drpruning.common.errors import BadInput
from drpruning.data import DomainSource, check_sources, formats, skipped_lines
from drpruning.data.formats import JsonObjects, csv_rows
from drpruning.data.readers import RowReader
from drpruning.data.sources import locate
from drpruning.data.text_files import COMPRESSIONS, FORMATS, kind_of
from helpers import small_runs

Texts = list[str]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}
DIFFICULT = [
    'a "quoted" word, and a comma',
    "several\nlines\n\nof\ttext",
    "windows\r\nlines",
    "Zürich 東京 🎈 \u2028 \x00 nul",
    "\\ \\n { } [ ] ' ; |",
    "x" * 5000,
    " leading and trailing ",
    "</s> <s>",
]


def table(delimiter: str) -> Callable[[Texts], bytes]:
    def write(texts: Texts) -> bytes:
        stream = io.StringIO()
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerows([["id", "text"], *([str(i), text] for i, text in enumerate(texts))])
        return stream.getvalue().encode()

    return write


WRITE: dict[str, Callable[[Texts], bytes]] = {
    ".jsonl": lambda texts: b"".join(json.dumps({"text": t}).encode() + b"\n" for t in texts),
    ".json": lambda texts: json.dumps([{"text": text, "n": [1, {}]} for text in texts]).encode(),
    ".csv": table(","),
    ".tsv": table("\t"),
}


def read(place: Path | str) -> Texts:
    source = locate(DomainSource(name="cc", source=str(place)))
    return [row["text"] for _, _, row in RowReader(source, "text", (), "data.domains.cc.source")]


def test_every_format_is_tested() -> None:
    assert {*WRITE, ".txt"} == set(FORMATS)
    assert {*COMPRESSIONS, ""} == COMPRESS.keys()


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", WRITE)
def test_text_comes_back_as_it_was_written(tmp_path: Path, kind: str, compression: str) -> None:
    file = tmp_path / f"A{kind.upper()}{compression.upper()}"
    file.write_bytes(COMPRESS[compression](WRITE[kind](DIFFICULT)))
    assert read(file) == DIFFICULT


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "one"}\n'), ("a.json", '[{"text": "one"}]'), ("a.txt", "one"),
        ("a.csv", "text,id\none,1\n"), ("a.tsv", "text\tid\none\t1\n"),
    ],
)  # fmt: skip
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, name: str, content: str) -> None:
    """Spreadsheets put one before the name of the first column."""
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert read(tmp_path / name) == ["one"]


def test_a_folder_has_the_documents_of_all_its_files(tmp_path: Path) -> None:
    rng = random.Random(0)
    parts = {}
    for kind, write in WRITE.items():
        for compression, compress in COMPRESS.items():
            texts = [f"{kind}{compression} {number}" for number in range(rng.randint(1, 9))]
            file = tmp_path / rng.choice(["", "sub", "sub/deep"]) / f"{kind[1:]}{kind}{compression}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(compress(write(texts)))
            parts[file] = texts
    for compression, compress in COMPRESS.items():
        file = tmp_path / f"t.txt{compression}"
        file.write_bytes(compress(b"plain text"))
        parts[file] = ["plain text"]
    pq.write_table(pa.table({"text": ["in a table"]}), tmp_path / "p.PARQUET")
    parts[tmp_path / "p.PARQUET"] = ["in a table"]
    assert read(tmp_path) == [text for file in sorted(parts) for text in parts[file]]
    assert sorted(read(tmp_path)) == sorted(text for file in parts for text in read(file))
    assert not skipped_lines([DomainSource(name="cc", source=str(tmp_path))])


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    folder = tmp_path / "web"
    for name in ("a.jsonl", "c.JSONL", "LICENSE", "README.md", "data.bin", "_SUCCESS",
                 ".old.jsonl", ".git/a.jsonl", "sub/.b.json", "sub/d.json.gz"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        content = b'{"text": "one"}\n'
        (folder / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/e.jsonl").write_text('{"text": "one"}\n')
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    return folder


def test_every_file_is_read_or_named(mixed: Path) -> None:
    domain = DomainSource(name="cc", source=str(mixed), validation=str(mixed.parent / "elsewhere"))
    assert len(read(mixed)) == 3
    (line,) = skipped_lines([domain])
    assert line.startswith(f"data.domains.cc.source: not read in {mixed}: ")
    assert "3 hidden (.git/, .old.jsonl, sub/.b.json)" in line
    assert "1 a link to a folder (linked/)" in line
    assert "4 of no kind that is read (LICENSE, README.md, _SUCCESS, data.bin)" in line
    everything = {path.name for path in mixed.rglob("*") if path.is_file()}
    found = locate(domain)
    named = {Path(name).name for name, _ in found.skipped} | {f.name for f in found.files}
    assert everything - {"e.jsonl"} <= named | {path.name for path in mixed.glob(".git/*")}


@pytest.mark.parametrize("command", ["plan", "prepare"])
def test_a_command_names_them_once(
    mixed: Path, recipe_values: dict[str, Any], tmp_path: Path, command: str
) -> None:
    rows = "".join(json.dumps({"text": f"one two {number}"}) + "\n" for number in range(200))
    (mixed / "b.jsonl").write_text(rows)
    recipe_values["data"]["domains"]["numbers"]["source"] = str(mixed)
    recipe = small_runs.write(recipe_values, tmp_path / "r.yaml")
    shown = small_runs.drprune(command, recipe)
    assert shown.count("data.domains.numbers.source: not read in") == 1


def test_only_the_first_names_are_shown(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    for number in range(1200):
        (tmp_path / f"{number:04}.bin").touch()
    (line,) = skipped_lines([DomainSource(name="cc", source=str(tmp_path))])
    assert "1,200 of no kind that is read (0000.bin, 0001.bin" in line
    assert line.endswith(", ...)")
    assert len(line) < 400


def test_folders_that_a_glob_matches_are_named(mixed: Path) -> None:
    (mixed / "more.jsonl").mkdir()
    (mixed / "more.jsonl/f.jsonl").write_text('{"text": "one"}\n')
    (line,) = skipped_lines([DomainSource(name="cc", source=f"{mixed}/*.jsonl")])
    assert line.endswith("1 a folder (" + str(mixed / "more.jsonl") + "/)")
    assert not skipped_lines([DomainSource(name="cc", source=f"{mixed}/**/*.jsonl")])


def test_a_folder_without_text_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").touch()
    with pytest.raises(BadInput, match=r"has no \.jsonl, .* file; it has 1 of no kind .*LICENSE"):
        check_sources([DomainSource(name="cc", source=str(tmp_path))])


def test_file_addresses_are_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    assert read(f"file://{tmp_path}/a.jsonl") == read(tmp_path / "a.jsonl") == ["one"]
    assert read(f"file://{tmp_path}/*.jsonl") == ["one"]


@pytest.mark.parametrize("name", ["a.jsonl.bz2", "jsonl", "a.json.gz.bak", "a.parquet.gz", "a"])
def test_other_endings_are_of_no_kind(name: str) -> None:
    assert kind_of(name) is None


@pytest.mark.parametrize("pieces", [1, 2, 3, 7, 64])
def test_json_is_the_same_however_little_is_read_at_once(
    pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_JSON_CHARACTERS", pieces)
    rows: list[Any] = [
        {"text": text, "more": [None, True, -1.5e-7, {"a": {}}, "\ud83c\udf88"]}
        for text in DIFFICULT
    ]
    for data in (
        json.dumps(rows),
        json.dumps(rows, indent=3),
        json.dumps(rows, ensure_ascii=True),
        "".join(json.dumps(row) + "\n\r\n \t" for row in rows),
        "".join(json.dumps(row, indent=1) for row in rows),
        " " * 300 + json.dumps(rows) + "\n" * 300,
    ):
        stream = io.BytesIO(data.encode("utf-8", errors="surrogatepass"))
        assert [row for _, _, row in JsonObjects(stream, "a").rows()] == json.loads(
            json.dumps(rows)
        )
    for data in ("[]", " [ ] ", "", " \n"):
        assert list(JsonObjects(io.BytesIO(data.encode()), "a").rows()) == []


def test_a_large_array_is_not_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_JSON_CHARACTERS", 4096)
    rows = [{"text": "x" * 100, "n": number} for number in range(5000)]
    objects = JsonObjects(io.BytesIO(json.dumps(rows).encode()), "a")
    held = [len(objects._text) for _ in objects.rows()]
    assert len(held) == 5000
    assert max(held) < 10_000


def test_an_object_that_never_ends_is_refused_before_memory_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(formats, "_JSON_CHARACTERS", 256)
    monkeypatch.setattr(formats, "longest_document", lambda: 1000)
    with pytest.raises(BadInput, match=r"a:1: a document of more than 1,000 bytes"):
        list(JsonObjects(io.BytesIO(b'[{"text": "' + b"x" * 10_000), "a").rows())
    with pytest.raises(BadInput, match=r"a:\d+: a document of more than 1,000 bytes"):
        list(csv_rows(io.BytesIO(b'text\n"' + b"x\n" * 10_000), "a", ","))


def test_what_is_skipped_is_a_warning_of_the_preparation(
    mixed: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drpruning.data import preparation

    domain = DomainSource(name="cc", source=str(mixed))
    job = preparation._Preparation.__new__(preparation._Preparation)
    monkeypatch.setattr(preparation, "_grouped", lambda *_, **__: [])
    with caplog.at_level(logging.WARNING, "drpruning"):
        job.tokenize([domain], {"tokenized": {}})
    assert [record.getMessage() for record in caplog.records] == skipped_lines([domain])
