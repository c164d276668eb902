"""The rows of a source, read one after the other, and how long a document may be."""

import gzip
import io
import itertools
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, cast

from drpruning.common.errors import LONGEST_SHOWN, BadInput
from drpruning.common.files import parse_json
from drpruning.data.columns import ColumnError, path_of, rows_of
from drpruning.data.columns import Path as ColumnPath
from drpruning.data.sources import HubDataset, LocalFiles, unreadable

_ROWS_AT_ONCE = 1000
_NAMES_SHOWN = 20
MEMORY_PER_BYTE = 12  # 6 to 9 were measured: as read, decoded, encoded, in Arrow, as ids
_BOM = b"\xef\xbb\xbf"
_LARGEST_WINDOW = 1 << 31  # the most that zstd itself has (`--long=31`); only what is used is taken
_MEMORY = Path("/proc/meminfo")
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def free_memory() -> int | None:
    """Bytes of memory that are free on this machine, at most what a container may use.

    Returns:
        None where the system does not say.
    """
    found = [int(text) for file in _LIMITS if (text := _read(file).strip()).isdecimal()]
    for line in _read(_MEMORY).splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    return min(found, default=None)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return ""


Row = Mapping[str, Any]
Located = tuple[str, int, Row]
"""What a row came from, its number there (counted from 1) and the row."""


class RowReader:
    """Reads the rows of a source, once.

    Attributes:
        total: bytes of the files, or rows of the dataset.
    """

    def __init__(
        self, source: LocalFiles | HubDataset, text_field: str, others: Iterable[str], label: str
    ) -> None:
        """Open a source.

        Args:
            source: from `sources.resolve`.
            text_field: dotted name of the field with the text; a .txt file is a row of it alone.
            others: further fields that will be looked up; of columnar files no others are read.
            label: the recipe field to name in errors.
        """
        self._source = source
        self._text_field = text_field
        self._fields = sorted({text_field, *others})
        self._label = label
        self._read_before = 0
        self._raw: IO[bytes] | None = None
        self._dataset: Any = None
        if isinstance(source, LocalFiles):
            self.total = sum(_size(file, label) for file in source.files)
        else:
            self._dataset = load_dataset(source, label)
            self.total = len(self._dataset)

    @property
    def done(self) -> int:
        """How much has been read, in the unit of `total`."""
        return self._read_before + (self._raw.tell() if self._raw else 0)

    def __iter__(self) -> Iterator[Located]:
        if isinstance(self._source, HubDataset):
            yield from self._dataset_rows(self._source.name)
        else:
            for file in self._source.files:
                yield from self._file_rows(file)

    def _file_rows(self, file: Path) -> Iterator[Located]:
        size = 0
        try:
            with file.open("rb") as raw:
                size = os.fstat(raw.fileno()).st_size
                self._raw = raw
                if not size:
                    return
                if file.name.endswith(".parquet"):
                    yield from self._parquet_rows(file, raw)
                elif file.name.endswith(".txt"):
                    limit = longest_document()
                    if limit is not None and size > limit:
                        raise too_long(str(file), limit)
                    yield str(file), 1, {self._text_field: _decoded(raw.read(), str(file))}
                else:
                    yield from _json_rows(file, raw)
        except WindowTooLarge as error:
            raise BadInput(
                f"{self._label}: {file} cannot be decompressed here: {error}; compress it again "
                "with `zstd --long=27` or less"
            ) from error
        except (OSError, EOFError, zlib.error) as error:
            if isinstance(error, OSError):
                raise unreadable(self._label, file, error) from error
            raise BadInput(
                f"{self._label}: {file} cannot be read: {error}; put a complete file in its place"
            ) from error
        finally:
            self._raw = None
            self._read_before += size

    def _parquet_rows(self, file: Path, raw: IO[bytes]) -> Iterator[Located]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.ParquetFile(raw)
        except pa.ArrowException as error:
            raise BadInput(
                f"{self._label}: {file} is not a parquet file: {error}; put a complete one in its "
                "place"
            ) from error
        # Dotted names choose fields inside of structs, so that what is beside them is not read.
        paths = self._paths(table.schema_arrow, str(file))
        columns = [".".join(path) for path in paths.values()]
        try:
            batches = table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns)
            yield from self._located(batches, paths, str(file))
        except pa.ArrowException as error:
            raise BadInput(
                f"{self._label}: {file} cannot be read: {error}; write the file again, the columns "
                f"{', '.join(columns)} as plain text"
            ) from error

    def _dataset_rows(self, name: str) -> Iterator[Located]:
        dataset = self._dataset
        paths = self._paths(dataset.features.arrow_schema, name)
        columns = sorted({path[0] for path in paths.values()})
        batches = dataset.select_columns(columns).with_format("arrow").iter(_ROWS_AT_ONCE)
        for located in self._located(batches, paths, name):
            self._read_before = located[1]
            yield located

    def _located(
        self, batches: Iterable[Any], paths: Mapping[str, ColumnPath], place: str
    ) -> Iterator[Located]:
        number = 0
        try:
            for batch in batches:
                for row in rows_of(batch, paths):
                    number += 1
                    yield place, number, row
        except ColumnError as error:
            raise BadInput(
                f"{self._label}: {place}: row {number + 1} or one after it cannot be read: {error};"
                " write the file again with plain text in it"
            ) from error

    def _paths(self, schema: Any, place: str) -> dict[str, ColumnPath]:
        """Find each field that will be looked up in the schema."""
        try:
            found = {field: path_of(schema, field) for field in self._fields}
        except ColumnError as error:
            raise BadInput(
                f"{self._label}: {place}: {error}; write the file again with different names"
            ) from error
        if missing := [field for field, path in found.items() if path is None]:
            raise BadInput(
                f"{self._label}: {place} has no field {missing[0]!r}; its fields are "
                f"{field_names(schema.names)}"
            )
        return {field: path for field, path in found.items() if path is not None}


def _size(file: Path, label: str) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise unreadable(label, file, error) from error


def field_names(names: Iterable[str]) -> str:
    """List field names for a message, only the first where there are many."""
    known = list(names)
    more = f" and {len(known) - _NAMES_SHOWN} more" if len(known) > _NAMES_SHOWN else ""
    return ", ".join(name[:LONGEST_SHOWN] for name in known[:_NAMES_SHOWN]) + more


def lookup(row: Row, dotted: str) -> tuple[bool, Any]:
    """Whether a row has a field, and its value; what is inside of a null is null."""
    if dotted in row:
        return True, row[dotted]
    value: Any = row
    for part in dotted.split("."):
        if value is None:
            return True, None
        if not isinstance(value, Mapping) or part not in value:
            return False, None
        value = value[part]
    return True, value


def load_dataset(source: HubDataset, label: str) -> Any:
    """Load a dataset from the Hub, the local cache (`HF_HUB_OFFLINE=1`) or a folder.

    Raises:
        BadInput: no dataset has that name, configuration and split, or it cannot be reached.
    """
    import datasets

    name = source.name if source.folder is None else ""
    # A format's name is that of a loader: `datasets` would read what lies in the current folder.
    if name.isidentifier() and find_spec(f"datasets.packaged_modules.{name}"):
        raise BadInput(
            f"{label}: {name} is no dataset but a format; name the files, a folder or a dataset"
        )
    try:
        if source.folder is None:
            return datasets.load_dataset(source.name, source.config, split=source.split)
        saved = datasets.load_from_disk(str(source.folder))
        return saved[source.split] if isinstance(saved, datasets.DatasetDict) else saved
    except Exception as error:  # the libraries below have dozens of unrelated error types
        where = (
            "cannot be loaded as"
            if source.folder
            else "is no file or folder here, nor to be had as"
        )
        reason = str(error).strip() or type(error).__name__
        raise BadInput(
            f"{label}: {source.folder or source.name} {where} a Hugging Face dataset (config "
            f"{source.config}, split {source.split}): {reason}"
        ) from error


def _json_rows(file: Path, raw: IO[bytes]) -> Iterator[Located]:
    name = str(file)
    stream, limit = uncompressed(file, raw), longest_document()
    for number in itertools.count(1):
        line = stream.readline(-1 if limit is None else limit + 1)
        if not line:
            return
        if limit is not None and len(line) > limit:
            raise too_long(f"{file}:{number}", limit)
        text = _decoded(line, f"{file}:{number}")
        del line  # a document may be long
        if text.isspace():
            continue
        try:
            row = parse_json(text)
        except ValueError as error:
            reason = getattr(error, "msg", error)
            raise BadInput(
                f"{file}:{number}: not valid JSON: {reason}; write one object a line"
            ) from error
        if not isinstance(row, dict):
            raise BadInput(f"{file}:{number}: each line must be a JSON object, this one is not")
        del text
        yield name, number, row


def longest_document() -> int | None:
    """Bytes of a document that can be tokenized in the memory that is free; None: not known."""
    free = free_memory()
    return None if free is None else free // MEMORY_PER_BYTE


def too_long(place: str, limit: int) -> BadInput:
    """The error for a document that is longer than the memory allows."""
    return BadInput(
        f"{place}: a document of more than {limit:,} bytes is too long for the memory that is "
        "free here; split it into several"
    )


def uncompressed(file: Path, raw: IO[bytes]) -> IO[bytes]:
    """Decompress a file according to the ending of its name."""
    if file.name.endswith(".gz"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if file.name.endswith(".zst"):
        return io.BufferedReader(_ZstdStream(raw), 1 << 20)
    return raw


_TOO_MUCH = ("too much memory", "not enough memory")


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
