"""The rows of a source, read one after the other."""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import IO, Any

from drpruning.common.errors import LONGEST_SHOWN, BadInput
from drpruning.data.columns import ColumnError, path_of, rows_of
from drpruning.data.columns import Path as ColumnPath
from drpruning.data.formats import Located, Row, WindowTooLarge, rows_in
from drpruning.data.remote import RemoteFile
from drpruning.data.sources import HubDataset, Source, unreadable
from drpruning.data.text_files import PARQUET, FileKind, TextFile, TextFiles, kind_of

_ROWS_AT_ONCE = 1000
_NAMES_SHOWN = 20


class RowReader:
    """Reads the rows of a source, once.

    Attributes:
        total: bytes of the files, or rows of the dataset.
    """

    def __init__(self, source: Source, text_field: str, others: Iterable[str], label: str) -> None:
        """Open a source.

        Args:
            source: from `sources.locate`.
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
        if isinstance(source, TextFiles):
            self.total = sum(size_of(file, label) or 0 for file in source.files)
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

    def _file_rows(self, file: TextFile) -> Iterator[Located]:
        size = size_of(file, self._label)
        if size == 0:
            return
        kind = kind_of(file.name) or FileKind(".jsonl")
        try:
            with open_file(file) as raw:
                self._raw = raw
                if kind.format == PARQUET:
                    yield from self._parquet_rows(file, raw)
                else:
                    yield from rows_in(kind, raw, str(file), self._text_field)
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
        except Exception as error:
            if isinstance(error, BadInput) or not isinstance(file, RemoteFile):
                raise
            raise unreadable(self._label, file, error) from None  # each has errors of its own
        finally:
            self._raw = None
            self._read_before += size or 0

    def _parquet_rows(self, file: TextFile, raw: IO[bytes]) -> Iterator[Located]:
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


def open_file(file: TextFile) -> IO[bytes]:
    """Open a file, wherever it is, to read its bytes."""
    return file.open() if isinstance(file, RemoteFile) else file.open("rb")


def size_of(file: TextFile, label: str) -> int | None:
    """Bytes of a file, None where a server does not say.

    Raises:
        BadInput: the file cannot be read.
    """
    if isinstance(file, RemoteFile):
        return file.size
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
