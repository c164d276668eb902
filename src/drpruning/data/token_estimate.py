"""Estimates of a domain's tokens, from samples that are small however large the files are."""

import functools
import io
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from drpruning.common.errors import BadInput
from drpruning.common.hub import local_file
from drpruning.data.columns import path_of, rows_of
from drpruning.data.formats import JsonObjects, csv_rows, uncompressed
from drpruning.data.readers import lookup
from drpruning.data.sources import DomainSource, resolve
from drpruning.data.text_files import PARQUET, FileKind, TextFiles, kind_of
from drpruning.data.tokenizer_files import TOKENIZER_FILE

_FILES = 8  # of one kind, evenly spread
_PLACES = 16  # in all these files together
_BYTES = 1 << 12  # at each place, and on to the end of a line
_LONGEST_LINE = 1 << 24
_LONGEST_TEXT = 1 << 13  # characters of one document that are tokenized
_ROWS = 32  # of one row group, out of the first of them
_ROWS_READ, _ROW_BYTES_READ = 512, 1 << 22  # how many these first ones are
_HEAD = 1 << 18  # decompressed bytes for each place in a compressed file
_CHUNK = 1 << 11  # compressed bytes that are read at once

# What a token is without a tokenizer: about one character of scripts that are written without
# spaces (Chinese, Japanese, Thai, ...), two other letters beyond ASCII, four of ASCII.
_DENSE = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\ua4cf\uac00-\ud7af\uf900-\ufaff]"
)
_ASCII = re.compile("[\x00-\x7f]")

Counter = Callable[[str], float]
Sample = tuple[list[str], float]
"""Texts, and how many bytes of the file they stand for."""
T = TypeVar("T")


def estimate_tokens(domain: DomainSource, tokenizer: str | Path | None = None) -> int | None:
    """Estimate how many tokens a domain has, from samples of its text at several places.

    Args:
        domain: the domain; its validation source does not count.
        tokenizer: folder with a tokenizer.json, or the name of one that is in the local Hub cache.
            Where there is none, or the `tokenizers` library is not installed, the script of the
            sample says how long a token is.

    Returns:
        None where a sample does not tell: for Hugging Face datasets, addresses, rows chosen by
        `where`, where the library that reads them is not installed, and where no text is found.

    Raises:
        BadInput: the source does not exist or cannot be read; see `check_sources`.
    """
    source = resolve(domain)
    if not isinstance(source, TextFiles) or domain.where:
        return None
    count = _counter(tokenizer)
    total = 0.0
    kinds: dict[FileKind | None, list[Path]] = {}
    for file in source.files:
        if isinstance(file, Path):
            kinds.setdefault(kind_of(file.name), []).append(file)
    for kind, files in kinds.items():
        some = _spread(files, _FILES)
        found = [_sample(file, kind, domain.text_field, _PLACES // len(some)) for file in some]
        sampled = sum(read for _, read in found)
        if not sampled:
            return None
        tokens = sum(_tokens(text, count) for texts, _ in found for text in texts)
        total += tokens * sum(file.stat().st_size for file in files) / max(sampled, 1)
    return round(total)


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spread."""
    step = max(len(items) / count, 1)
    return [items[int(index * step)] for index in range(min(count, len(items)))]


def _tokens(text: str, count: Counter) -> float:
    """Tokens of a document and its end, from its first part where it is long; none if empty."""
    if not text.strip():
        return 0.0
    part = text[:_LONGEST_TEXT]
    return count(part) * len(text) / len(part) + 1


def _counter(tokenizer: str | Path | None) -> Counter:
    """A function that counts the tokens of a text, or guesses their number by its script."""
    file = (
        None if tokenizer is None else local_file(str(tokenizer), TOKENIZER_FILE, "model.tokenizer")
    )
    if file is not None:
        try:
            loaded = _load(file, file.stat().st_mtime_ns)
        except Exception:  # not installed, or a damaged file: what needs the tokenizer says so
            return _by_script
        # One text after the other: threads of the library would not go with a later fork.
        return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)
    return _by_script


def _by_script(text: str) -> float:
    dense, ascii_ = len(_DENSE.findall(text)), len(_ASCII.findall(text))
    return dense + (len(text) - dense - ascii_) / 2 + ascii_ / 4


@functools.lru_cache(maxsize=1)
def _load(file: Path, _modified: int) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _sample(file: Path, kind: FileKind | None, text_field: str, places: int) -> Sample:
    """Texts from some places of a file; nothing where it cannot be read, which reading reports."""
    try:
        with file.open("rb") as raw:
            size = file.stat().st_size
            if kind is None:
                return [], 0
            if kind.format == PARQUET:
                return _parquet_sample(raw, size, text_field, places)
            if kind.compression or kind.format in {".json", ".csv", ".tsv"}:
                return _head_sample(kind, raw, text_field, places)
            if kind.format == ".txt":
                return _text_sample(raw, size, places)
            return _texts(_lines(raw, size, places), text_field)
    except Exception:  # libraries that are not installed, and all that can be wrong with a file
        return [], 0


def _starts(size: int, places: int) -> tuple[list[int], int]:
    """Where to read in a stream of this size, and how much at each place; all of a small one."""
    if size <= places * _BYTES:
        return [0], size
    return [size * place // places for place in range(places)], _BYTES


def _lines(stream: IO[bytes], size: int, places: int) -> Iterator[bytes]:
    """At each place the lines that begin in the next few bytes, at least one."""
    starts, limit = _starts(size, places)
    for start in starts:
        stream.seek(start)
        if start:
            stream.readline(_LONGEST_LINE)
        end = stream.tell() + limit
        while line := stream.readline(_LONGEST_LINE):
            yield line
            if stream.tell() >= end:
                break


def _texts(lines: Iterable[bytes], text_field: str) -> Sample:
    """The texts of JSON lines and the length of these lines; lines that are no rows are skipped."""
    texts, read = [], 0
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        read += len(line)
        text = lookup(row, text_field)[1] if isinstance(row, dict) else None
        if isinstance(text, str):
            texts.append(text)
    return texts, read


def _text_sample(raw: IO[bytes], size: int, places: int) -> Sample:
    texts, read = [], 0
    starts, limit = _starts(size, places)
    for start in starts:
        raw.seek(start)
        piece = raw.read(limit)
        read += len(piece)
        texts.append(piece.decode("utf-8", errors="ignore"))
    return texts, read


class _Chunks(io.RawIOBase):
    """A file that is handed out in small pieces, so that `tell` says how much of it is used."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw

    def read(self, size: int = -1) -> bytes:
        return self._raw.read(_CHUNK if size < 0 else min(size, _CHUNK))

    def tell(self) -> int:
        return self._raw.tell()


def _head_sample(kind: FileKind, raw: IO[bytes], text_field: str, places: int) -> Sample:
    """Texts from the first part of a file: from another place it could not be made sense of."""
    stream: Any = uncompressed(kind, cast("IO[bytes]", _Chunks(raw)))
    read_some = getattr(stream, "read1", stream.read)
    data = bytearray()
    while len(data) < _HEAD * places or b"\n" not in data:
        piece = read_some(_LONGEST_LINE)
        data += piece
        if not piece or len(data) > _LONGEST_LINE:
            break
    used = raw.tell()
    texts, read = _texts_at_head(kind, bytes(data), text_field, places, cut=bool(piece))
    return texts, read / max(len(data), 1) * used


def _texts_at_head(
    kind: FileKind, data: bytes, text_field: str, places: int, *, cut: bool
) -> Sample:
    """The texts in the first bytes of a file, and how many of these bytes they stand for."""
    if kind.format == ".txt":
        return [data.decode("utf-8", errors="ignore")], len(data)
    if kind.format == ".jsonl":
        end = data.rfind(b"\n") + 1 if cut else len(data)  # a cut line would not be a row
        return _texts(_lines(io.BytesIO(data[:end]), end, places), text_field)
    read = float(len(data))
    rows: list[Any] = []
    if kind.format == ".json":
        objects = JsonObjects(io.BytesIO(data), "")
        try:
            rows += (row for _, _, row in objects.rows())
        except BadInput:  # mostly of the last object, which is cut
            read -= len(objects.remaining.encode())
    else:  # of a cut row all is taken that there is
        delimiter = "\t" if kind.format == ".tsv" else ","
        rows += (row for _, _, row in csv_rows(io.BytesIO(data), "", delimiter, strict=False))
    found = (lookup(row, text_field)[1] for row in rows)
    return [text for text in found if isinstance(text, str)], read


def _parquet_sample(raw: IO[bytes], size: int, text_field: str, places: int) -> Sample:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(raw, buffer_size=1 << 20)
    path = path_of(table.schema_arrow, text_field)
    if path is None:
        return [], 0
    texts, rows = [], 0
    choose = random.Random(0)  # noqa: S311 - not the first rows, nor every n-th: rows may alternate
    for group in _spread(range(table.num_row_groups), places):
        facts = table.metadata.row_group(group)
        row_bytes = max(facts.total_byte_size // max(facts.num_rows, 1), 1)
        count = max(_ROWS, min(_ROWS_READ, _ROW_BYTES_READ // row_bytes))
        batches = table.iter_batches(count, row_groups=[group], columns=[".".join(path)])
        found = [row[text_field] for row in rows_of(next(iter(batches)), {text_field: path})]
        found = choose.sample(found, min(_ROWS, len(found)))
        rows += len(found)
        texts += [text for text in found if isinstance(text, str)]
    return texts, size * rows / table.metadata.num_rows
