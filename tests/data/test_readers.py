"""What can be odd about files of text, and what is said of it."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from drpruning.common.errors import BadInput
from drpruning.data import DomainSource
from drpruning.data.readers import RowReader, lookup
from drpruning.data.sources import resolve

TEXTS = ["one", "two", "three"]


def read(
    place: Path, text_field: str = "text", others: tuple[str, ...] = ()
) -> list[tuple[Any, ...]]:
    """The fields of each row that are asked for."""
    source = resolve(DomainSource(name="cc", source=str(place)))
    reader = RowReader(source, text_field, others, "data.domains.cc.source")
    return [tuple(lookup(row, name)[1] for name in (text_field, *others)) for _, _, row in reader]


def write(place: Path, table: pa.Table, kind: str) -> Path:
    if kind == "parquet":
        file = place / "a.parquet"
        pq.write_table(table, file)
        return file
    datasets.Dataset(table).save_to_disk(place / "saved")
    return place / "saved"


def struct(*fields: tuple[str, list[Any]]) -> pa.Array:
    arrays = [pa.array(values) for _, values in fields]
    return pa.StructArray.from_arrays(arrays, names=[name for name, _ in fields])


DIFFICULT: dict[str, Callable[[], pa.Array]] = {
    "names-twice": lambda: struct(("x", TEXTS), ("x", TEXTS)),
    "unknown-zone": lambda: pa.array([1, 2, 3], pa.timestamp("us", tz="Europe/Nowhere")),
    "late-date": lambda: pa.array([2**62, 2, 3], pa.timestamp("us")),
    "lists-of-them": lambda: pa.ListArray.from_arrays(
        pa.array([0, 1, 2, 3], pa.int32()), struct(("x", TEXTS), ("x", TEXTS))
    ),
    "no-utf8": lambda: pa.array([b"\xff", b"a", b"b"]).view(pa.string()),
}


@pytest.mark.parametrize("name", DIFFICULT)
def test_columns_that_are_not_needed_do_not_matter(tmp_path: Path, name: str) -> None:
    table = pa.table({"text": TEXTS, "odd": DIFFICULT[name]()})
    assert read(write(tmp_path, table, "parquet")) == [(text,) for text in TEXTS]


@pytest.mark.parametrize("name", DIFFICULT)
def test_a_column_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, pa.table({"text": TEXTS, "odd": DIFFICULT[name]()}), "parquet")
    for field, others in (("odd", ()), ("text", ("odd",))):
        with pytest.raises(
            BadInput, match=r"cc\.source: .*a\.parquet: row 1 .* column 'odd'.*; write the file ag"
        ):
            read(file, field, others)


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_inner_fields_are_read_alone(tmp_path: Path, kind: str) -> None:
    inner = struct(("text", TEXTS), ("zone", [1, 2, 3]), ("set", ["a", "b", "a"]))
    file = write(tmp_path, pa.table({"m": inner, "id": [1, 2, 3]}), kind)
    assert read(file, "m.text", ("m.set", "id")) == [
        ("one", "a", 1),
        ("two", "b", 2),
        ("three", "a", 3),
    ]
    with pytest.raises(BadInput, match=r"has no field 'm\.body'; its fields are m, id"):
        read(file, "m.body")
    with pytest.raises(BadInput, match=r"has no field 'id\.text'"):
        read(file, "id.text")


def test_an_inner_field_beside_a_name_that_comes_twice(tmp_path: Path) -> None:
    inner = struct(("text", TEXTS), ("x", [1, 2, 3]), ("x", [1, 2, 3]))
    file = write(tmp_path, pa.table({"m": inner}), "parquet")
    assert read(file, "m.text") == [(text,) for text in TEXTS]
    with pytest.raises(BadInput, match=r"a\.parquet: there are several fields of the name 'm\.x'"):
        read(file, "m.text", ("m.x",))
    twice = pa.Table.from_arrays([pa.array(TEXTS)] * 2, names=["text", "text"])
    file = write(tmp_path, twice, "parquet")
    with pytest.raises(BadInput, match="several fields of the name 'text'"):
        read(file)


def test_a_name_with_a_dot_comes_before_an_inner_field(tmp_path: Path) -> None:
    table = pa.table({"m.text": TEXTS, "m": struct(("other", TEXTS))})
    assert read(write(tmp_path, table, "parquet"), "m.text") == [(text,) for text in TEXTS]


@pytest.mark.parametrize(
    "array",
    [
        pa.array(TEXTS).dictionary_encode(),
        pa.array(TEXTS, pa.large_string()),
        pa.array(TEXTS, pa.string_view()),
    ],
    ids=["dictionary", "large", "view"],
)
def test_every_kind_of_text_is_text(tmp_path: Path, array: pa.Array) -> None:
    assert read(write(tmp_path, pa.table({"text": array}), "parquet")) == [(t,) for t in TEXTS]


def test_values_to_choose_rows_by_are_those_of_python(tmp_path: Path) -> None:
    times = pa.array([0, 1, 2], pa.timestamp("s", tz="UTC"))
    prices = pa.array([Decimal("1.50"), Decimal("2.50"), None])
    table = pa.table({"text": TEXTS, "time": times, "price": prices, "tags": [["a"], [], None]})
    rows = read(write(tmp_path, table, "parquet"), "text", ("time", "price", "tags"))
    assert rows[1] == ("two", datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), Decimal("2.50"), [])
    assert rows[2][2:] == (None, None)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_what_is_inside_of_a_null_is_null(tmp_path: Path, kind: str) -> None:
    rows = [{"m": {"text": "one"}}, {"m": None}, {"m": {"text": None}}]
    if kind == "jsonl":
        file = tmp_path / "a.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        file = write(tmp_path, pa.Table.from_pylist(rows), kind)
    assert read(file, "m.text") == [("one",), (None,), (None,)]


def test_a_field_that_is_missing_is_not_null() -> None:
    assert lookup({"m": None}, "m.text") == (True, None)
    assert lookup({"m": None}, "m.a.b") == (True, None)
    assert lookup({"m": {}}, "m.text") == (False, None)
    assert lookup({}, "m.text") == (False, None)
    assert lookup({"m": "text"}, "m.text") == (False, None)
    assert lookup({"m.text": 1, "m": {"text": 2}}, "m.text") == (True, 1)


def long_window(data: bytes, window_log: int) -> bytes:
    """Compressed as `zstd --long=WINDOW_LOG` does from a pipe: the size is not known before."""
    settings = zstandard.ZstdCompressionParameters(window_log=window_log, hash_log=10, chain_log=10)
    compressor = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize("window_log", [27, 28, 31])
def test_zstandard_with_a_long_window_is_read(tmp_path: Path, window_log: int) -> None:
    data = long_window(b'{"text": "one"}\n' * 2000, window_log)
    assert zstandard.get_frame_parameters(data).window_size == 1 << window_log
    (tmp_path / "a.jsonl.zst").write_bytes(data * 2)
    assert read(tmp_path / "a.jsonl.zst") == [("one",)] * 4000


def test_zstandard_with_a_window_that_nothing_holds_is_named_as_such(tmp_path: Path) -> None:
    data = bytearray(long_window(b'{"text": "one"}\n' * 2000, 28))
    data[5] = (41 - 10) << 3  # the window descriptor of the header: 2^41 bytes
    (tmp_path / "a.jsonl.zst").write_bytes(data)
    with pytest.raises(
        BadInput, match=r"a\.jsonl\.zst cannot be decompressed here: .*memory.*; compress it again"
    ):
        read(tmp_path / "a.jsonl.zst")


@pytest.mark.parametrize("number", range(3))
def test_files_that_vanish_while_they_are_read_are_named(tmp_path: Path, number: int) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text('{"text": "one"}\n')
    source = resolve(DomainSource(name="cc", source=str(tmp_path)))
    gone = tmp_path / f"{'abc'[number]}.jsonl"
    message = rf"cc\.source: .*{gone.name} was removed while it was in use; put it back"
    if number == 0:
        gone.unlink()
        with pytest.raises(BadInput, match=message):
            RowReader(source, "text", (), "data.domains.cc.source")
        return
    rows = iter(RowReader(source, "text", (), "data.domains.cc.source"))
    next(rows)
    gone.unlink()
    with pytest.raises(BadInput, match=message):
        list(rows)


def test_a_file_that_becomes_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    source = resolve(DomainSource(name="cc", source=str(tmp_path / "a.jsonl")))
    reader = RowReader(source, "text", (), "data.domains.cc.source")
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(BadInput, match=r"a\.jsonl cannot be read: Is a directory"):
        list(reader)
