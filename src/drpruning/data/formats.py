"""The rows in files of text: JSON lines, JSON, CSV and plain text, as they are or compressed."""

import csv
import gzip
import io
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import IO, Any, NoReturn, cast

from drpruning.common.errors import BadInput
from drpruning.common.files import parse_json
from drpruning.data.memory import longest_document, too_long
from drpruning.data.text_files import FileKind

_BOM = b"\xef\xbb\xbf"
_LARGEST_WINDOW = 1 << 31  # the most that zstd itself has (`--long=31`); only what is used is taken
_TOO_MUCH = ("too much memory", "not enough memory")
_LARGEST_FIELD = (1 << 31) - 1  # of a CSV file: what a C long holds everywhere
_JSON_CHARACTERS = 1 << 20  # that are read at once
_LONGEST_WORD = 12  # characters of the longest thing that JSON has outside of strings, but numbers

Row = Mapping[str, Any]
Located = tuple[str, int, Row]
"""What a row came from, its number there (counted from 1) and the row."""


def rows_in(kind: FileKind, raw: IO[bytes], place: str, text_field: str) -> Iterator[Located]:
    """The rows of a file, one after the other.

    Args:
        kind: of the file, not Parquet.
        raw: its bytes, as they are stored.
        place: its name, for messages.
        text_field: what the only field of a row is called where a file is one document.

    Raises:
        BadInput: a row is damaged, or longer than the memory allows.
        EOFError: the compressed file is damaged; see also `uncompressed`.
    """
    stream = uncompressed(kind, raw)
    if kind.format == ".txt":
        yield place, 1, {text_field: _document(stream, place)}
    elif kind.format == ".jsonl":
        yield from json_lines(stream, place)
    elif kind.format == ".json":
        yield from JsonObjects(stream, place).rows()
    else:
        yield from csv_rows(stream, place, "\t" if kind.format == ".tsv" else ",")


def _document(stream: IO[bytes], place: str) -> str:
    limit = longest_document()
    data = stream.read(-1 if limit is None else limit + 1)
    if limit is not None and len(data) > limit:
        raise too_long(place, limit)
    return _decoded(data, place)


def json_lines(stream: IO[bytes], place: str) -> Iterator[Located]:
    """The objects in a file of one JSON object a line."""
    limit = longest_document()
    for number in itertools.count(1):
        line = stream.readline(-1 if limit is None else limit + 1)
        if not line:
            return
        if limit is not None and len(line) > limit:
            raise too_long(f"{place}:{number}", limit)
        text = _decoded(line, f"{place}:{number}")
        del line  # a document may be long
        if text.isspace():
            continue
        try:
            row = parse_json(text)
        except ValueError as error:
            reason = getattr(error, "msg", error)
            raise BadInput(
                f"{place}:{number}: not valid JSON: {reason}; write one object a line"
            ) from error
        if not isinstance(row, dict):
            raise BadInput(f"{place}:{number}: each line must be a JSON object, this one is not")
        del text
        yield place, number, row


class JsonObjects:
    """The objects in a .json file: of one array, or one after the other (JSON lines).

    No more of the file is in memory than a piece of it, or one object where that is longer.
    """

    def __init__(self, stream: IO[bytes], place: str) -> None:
        self._stream = io.TextIOWrapper(stream, encoding="utf-8-sig")
        self._place = place
        self._limit = longest_document()
        self._decoder = json.JSONDecoder()
        self._text, self._at, self._ended = "", 0, False
        self._number = 0

    @property
    def remaining(self) -> str:
        """What has been read and is in no object yet."""
        return self._text[self._at :]

    def rows(self) -> Iterator[Located]:
        """The objects with their numbers, counted from 1."""
        in_array = self._next() == "["
        self._at += in_array
        while following := self._next():
            if in_array and following == "]" and self._number == 0:
                break
            self._number += 1
            if following != "{":
                self._fail("an object is expected", "write an array of objects, or one a line")
            yield self._place, self._number, self._object()
            if in_array:
                separator = self._next()
                if separator == "]":
                    break
                if separator != ",":
                    self._fail(
                        "the array goes on without a comma" if separator else "the array ends early"
                    )
                self._at += 1
        if in_array and self._next() != "]":
            self._fail("the array ends early")
        self._at += in_array
        if self._next():
            self._fail("there is more after the end of the array")

    def _next(self) -> str:
        """The next character that is no white space, which stays the next; "" at the end."""
        while True:
            rest = len(self._text) - self._at
            stripped = self._text[self._at : self._at + 64].lstrip(" \t\r\n")
            if stripped:
                self._at += min(rest, 64) - len(stripped)
                return stripped[0]
            self._at += min(rest, 64)
            if self._at >= len(self._text) and not self._fill():
                return ""

    def _object(self) -> dict[str, Any]:
        while True:
            try:
                value, self._at = self._decoder.raw_decode(self._text, self._at)
            except RecursionError:
                self._fail("brackets are nested too deeply")
            except json.JSONDecodeError as error:
                # What looks wrong may only be cut off where the piece that was read ends.
                cut = error.msg.startswith("Unterminated string")
                cut = cut or error.pos >= len(self._text) - _LONGEST_WORD
                if not (cut and self._fill()):
                    self._fail(error.msg)
            except ValueError:  # Python's limit for whole numbers
                self._fail("a number has more than 4,300 digits")
            else:
                return cast("dict[str, Any]", value)

    def _fill(self) -> bool:
        """Read as much as is waiting, at least a piece, so that long objects are not read often."""
        if self._ended:
            return False
        waiting = self.remaining
        if self._limit is not None and len(waiting) > self._limit:
            raise too_long(f"{self._place}:{self._number}", self._limit)
        try:
            more = self._stream.read(max(_JSON_CHARACTERS, len(waiting)))
        except UnicodeDecodeError as error:
            raise BadInput(
                f"{self._place}:{self._number}: this row or one after it is not valid UTF-8; "
                "convert the file to UTF-8"
            ) from error
        self._ended = not more
        self._text, self._at = waiting + more, 0
        return bool(more)

    def _fail(self, reason: str, remedy: str = "write the file again") -> NoReturn:
        raise BadInput(f"{self._place}:{self._number}: not valid JSON: {reason}; {remedy}")


def csv_rows(
    stream: IO[bytes], place: str, delimiter: str, *, strict: bool = True
) -> Iterator[Located]:
    """The rows of a file of separated values; its first row names the fields.

    Args:
        stream: UTF-8; fields in double quotes may hold delimiters and line ends.
        place: for messages.
        delimiter: between two fields.
        strict: refuse what is damaged; otherwise take what there is of it, for an estimate.
    """
    limit = min(longest_document() or _LARGEST_FIELD, _LARGEST_FIELD)
    csv.field_size_limit(limit)  # a quote that is never closed would read all of the file
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="",
                            errors="strict" if strict else "replace")  # fmt: skip
    rows = csv.reader(text, delimiter=delimiter, strict=strict)
    header: list[str] = []
    try:
        header = next(rows, [])
        if len(set(header)) < len(header):
            raise BadInput(
                f"{place}: several columns have one name ({', '.join(header)}); rename them"
            )
        for row in rows:
            if not row:
                continue
            if strict and len(row) != len(header):
                raise BadInput(
                    f"{place}:{rows.line_num}: {len(row)} fields, where the header has "
                    f"{len(header)}; put fields with delimiters or line ends in double quotes"
                )
            yield place, rows.line_num, dict(zip(header, row, strict=False))
    except csv.Error as error:
        if "field limit" in str(error):
            raise too_long(f"{place}:{rows.line_num}", limit) from error
        raise BadInput(
            f"{place}:{rows.line_num}: not valid CSV: {error}; put fields with delimiters, quotes "
            "or line ends in double quotes, and quotes in them twice"
        ) from error
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{place}:{rows.line_num + 1}: this line or one after it is not valid UTF-8; convert "
            "the file to UTF-8"
        ) from error


def uncompressed(kind: FileKind, raw: IO[bytes]) -> IO[bytes]:
    """Decompress a file.

    Raises:
        EOFError: while it is read: zstandard data are damaged or end early.
        WindowTooLarge: while it is read: see there.
    """
    if kind.compression == ".gz":
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if kind.compression == ".zst":
        return io.BufferedReader(_ZstdStream(raw), 1 << 20)
    return raw


class WindowTooLarge(Exception):  # noqa: N818 - says what is wrong with the file
    """A zstandard file refers further back than memory or the library allows."""


class _ZstdStream(io.RawIOBase):
    """Reads any number of zstandard frames, and notices when the last one is cut off."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            compressed = (self._frame and self._frame.unused_data) or self._raw.read(1 << 18)
            if not compressed:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the compressed file ends in the middle of a frame")
                return 0
            self._ready = memoryview(self._decompress(compressed))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decompress(self, compressed: bytes) -> bytes:
        import zstandard

        if self._frame is None or self._frame.eof:
            decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
            self._frame = decompressor.decompressobj()
        try:
            data: bytes = self._frame.decompress(compressed)
        except zstandard.ZstdError as error:
            if any(words in str(error) for words in _TOO_MUCH):
                raise WindowTooLarge(str(error)) from error
            raise EOFError(f"not valid zstandard data ({error})") from error
        return data


def _decoded(data: bytes, place: str) -> str:
    try:
        return data.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{place}: not valid UTF-8 at byte {error.start}; convert the file to UTF-8"
        ) from error
