"""Text at addresses, with a file system in memory in the place of a network."""

import gzip
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from drpruning.common.errors import BadInput
from drpruning.data import (
    DomainSource,
    PreparedData,
    check_sources,
    estimate_tokens,
    prepare,
    remote,
    skipped_lines,
)
from drpruning.data.remote import is_address, without_secrets
from drpruning.data.sources import locate, resolve
from helpers.tokenizer_kinds import KINDS, save, template

TEXTS = [f"{number} the cat sat on the mat" for number in range(60)]


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


class BufferedFileSystem(MemoryFileSystem):
    """The same files as a network has them: listings are kept, files come in blocks."""

    protocol = "buffered"
    kept: ClassVar[dict[Any, Any]] = {}

    def find(self, path: str, **options: Any) -> Any:
        if path not in self.kept:
            self.kept[path] = super().find(path, **options)
        return self.kept[path]

    def invalidate_cache(self, path: str | None = None) -> None:  # noqa: ARG002 - of fsspec
        self.kept.clear()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("buffered://", "memory://")))

    def unstrip_protocol(self, name: str) -> str:
        return f"buffered:/{name}"

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        content = self.store[self._strip_protocol(path)].getvalue()

        class File(AbstractBufferedFile):
            def _fetch_range(self, start: int, end: int) -> bytes:
                return bytes(content[start:end])

        return File(self, path, mode, block_size=100, size=len(content))


fsspec.register_implementation("buffered", BufferedFileSystem)


@pytest.fixture
def bucket() -> Iterator[MemoryFileSystem]:
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/web/a.jsonl", lines(TEXTS[:20]))
    system.pipe("/bucket/web/b.json.gz", gzip.compress(lines(TEXTS[20:40])))
    with system.open("/bucket/web/deep/c.parquet", "wb") as file:
        pq.write_table(pa.table({"text": TEXTS[40:]}), file)
    system.pipe("/bucket/web/README.md", b"about it")
    system.pipe("/bucket/web/.part/x.jsonl", b"{}")
    system.pipe("/bucket/web/deep/.part/y.jsonl", b"{}")
    system.pipe("/bucket/validation.jsonl", lines([f"{text} v" for text in TEXTS]))
    yield system
    system.rm("/bucket", recursive=True)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    core = KINDS["byte_level_bpe"]()
    core.post_processor = template(["<s>"])
    folder = tmp_path_factory.mktemp("tokenizer")
    return save(core, folder, bos_token="<s>", eos_token="</s>")


def made(folder: Path, tokenizer: Path, source: str, validation: str | None) -> PreparedData:
    domain = DomainSource(name="cc", source=source, validation=validation)
    return prepare(
        [domain], tokenizer=tokenizer, vocab_size=None, sequence_length=16, validation_blocks=2,
        folder=folder, workers=1,
    )  # fmt: skip


@pytest.mark.parametrize("scheme", ["memory", "buffered"])
def test_text_at_an_address_gives_the_blocks_of_local_text(
    bucket: MemoryFileSystem,
    tokenizer: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    scheme: str,
) -> None:
    bucket.get("/bucket", str(tmp_path / "local"), recursive=True)
    local = tmp_path / "local/bucket"
    local = local if local.exists() else tmp_path / "local"
    here = made(tmp_path / "1", tokenizer, str(local / "web"), str(local / "validation.jsonl"))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "drpruning"):
        there = made(
            tmp_path / "2", tokenizer, f"{scheme}://bucket/web", f"{scheme}://bucket/v*.jsonl"
        )
    assert here.summary() == there.summary()
    assert there.domains["cc"].documents == 60
    for part in ("train", "validation"):
        assert (tmp_path / f"1/cc/{part}.bin").read_bytes() == (
            tmp_path / f"2/cc/{part}.bin"
        ).read_bytes()
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"not read in {scheme}://bucket/web" in line
    assert "2 hidden (.part/x.jsonl, deep/.part/y.jsonl)" in line
    assert "1 of no kind that is read (README.md)" in line


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("memory://bucket/web/a.jsonl", 1),
        ("memory://bucket/web/*.json*", 2),
        ("memory://bucket/web", 3),
        ("memory://bucket/web/", 3),
        ("memory://bucket/**/*.parquet", 1),
        ("memory://bucket/*", 1),  # the folder that it matches too is no file
    ],
)
def test_files_folders_and_globs(bucket: MemoryFileSystem, source: str, count: int) -> None:
    assert bucket.exists("/bucket")
    assert len(locate(DomainSource(name="cc", source=source)).files) == count


def test_the_query_of_a_web_page_is_no_pattern_and_no_part_of_a_name(
    bucket: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`?` and `[` are signs of a glob at other addresses."""
    bucket.pipe("/bucket/web/c.csv?parts[0]=1", b"text\none\n")
    # Without the package for https.
    monkeypatch.setattr("fsspec.get_filesystem_class", lambda _scheme: MemoryFileSystem)
    monkeypatch.setattr(
        "fsspec.core.url_to_fs",
        lambda address: (bucket, address.replace("https://me:secret@host", "/bucket")),
    )
    source = "https://me:secret@host/web/c.csv?parts[0]=1"
    monkeypatch.setattr(bucket, "unstrip_protocol", lambda _path: source, raising=False)
    domain = DomainSource(name="cc", source=source)
    check_sources([domain], remote=True)
    (file,) = locate(domain).files
    assert file.name == "c.csv"
    assert str(file) == "https://host/web/c.csv?..."


def test_a_listing_that_has_names_alone_is_completed(
    bucket: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bucket.exists("/bucket")
    listed = MemoryFileSystem.glob

    def names_alone(self: MemoryFileSystem, path: str, **options: Any) -> Any:
        found = listed(self, path, **options)
        return {name: {"name": name, "size": None, "type": "file"} for name in found}

    domain = DomainSource(name="cc", source="memory://bucket/web/a.*")
    complete = locate(domain)
    monkeypatch.setattr(MemoryFileSystem, "glob", names_alone)
    assert locate(replace(domain)) == complete
    (file,) = complete.files
    assert isinstance(file, remote.RemoteFile)
    assert file.size == len(lines(TEXTS[:20]))
    assert file.version is not None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("memory://nobucket/a.jsonl", r"cc\.source: memory://nobucket/a\.jsonl does not exist"),
        ("memory://bucket/web/none*", r"cc\.source: no file matches memory://bucket/web/none\*"),
        ("memory://bucket/web/README.md", r"cc\.source: .*README\.md is not a \.jsonl"),
        ("memory://bucket/web/.part", r"cc\.source: memory://bucket/web/\.part has no|is empty"),
    ],
)
def test_what_is_not_there_is_named(bucket: MemoryFileSystem, source: str, message: str) -> None:
    assert bucket.exists("/bucket")
    domain = DomainSource(name="cc", source=source)
    check_sources([domain])  # a plan does not look
    if source.endswith(".part"):
        bucket.pipe("/bucket/web/.part/x.jsonl", b"")
    with pytest.raises(BadInput, match=message):
        check_sources([domain], remote=True)


@pytest.mark.usefixtures("bucket")
def test_nothing_is_looked_at_for_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a plan waits for no network")

    for call in ("info", "find", "glob", "open", "ls", "exists"):
        monkeypatch.setattr(MemoryFileSystem, call, fail)
    domain = DomainSource(name="cc", source="memory://bucket/web", validation="memory://bucket/v")
    check_sources([domain])
    assert estimate_tokens(domain) is None
    assert not skipped_lines([domain])
    assert str(resolve(domain)) == "memory://bucket/web"


@pytest.mark.parametrize("scheme", ["memory", "buffered"])
def test_a_change_shows_before_the_data_are_complete_and_while_they_are_read(
    bucket: MemoryFileSystem,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
) -> None:
    source, validation = f"{scheme}://bucket/web", f"{scheme}://bucket/validation.jsonl"
    first = made(tmp_path / "out", tokenizer, source, validation)
    assert made(tmp_path / "out", tokenizer, source, validation).fingerprint == first.fingerprint
    bucket.pipe("/bucket/web/a.jsonl", lines(TEXTS[1:21]))
    with pytest.raises(BadInput, match="what differs: the source of domain cc"):
        made(tmp_path / "out", tokenizer, source, validation)
    opened = remote.RemoteFile.open

    def changed_meanwhile(file: remote.RemoteFile) -> Any:
        if file.name == "a.jsonl":
            bucket.pipe("/bucket/web/b.json.gz", gzip.compress(lines(TEXTS[21:41])))
        return opened(file)

    monkeypatch.setattr(remote.RemoteFile, "open", changed_meanwhile)
    with pytest.raises(BadInput, match=r"cc\.source: the text was changed while it was read"):
        made(tmp_path / "other", tokenizer, source, validation)


@pytest.mark.usefixtures("bucket")
def test_failures_of_a_server_are_one_message_without_secrets(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = {
        RuntimeError("503 at https://me:secret@host/a?X-Amz-Signature=secret"): r"503 at https://h",
        PermissionError("denied"): "permission denied; give the credentials",
        TimeoutError(): "TimeoutError; see that it can be reached",
    }
    for failure, message in failures.items():

        def fail(*_: Any, error: Exception = failure, **__: Any) -> None:
            raise error

        for call in ("info", "open"):
            with monkeypatch.context() as patch:
                patch.setattr(MemoryFileSystem, call, fail)
                if call == "open":
                    patch.setattr(MemoryFileSystem, "_open", fail)
                with pytest.raises(BadInput, match=message) as caught:
                    made(tmp_path / "out", tokenizer, "memory://bucket/web/a.jsonl", None)
                assert "secret" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_passwords_are_in_no_message_and_no_manifest(
    bucket: MemoryFileSystem, tokenizer: Path, tmp_path: Path
) -> None:
    for address, shown in {
        "sftp://me:secret@host/a.jsonl": "sftp://host/a.jsonl",
        "https://host/a.jsonl?token=secret&x=1": "https://host/a.jsonl?...",
        "https://me:secret@host:8080/a/b@c.jsonl": "https://host:8080/a/b@c.jsonl",
        "s3://bucket/a?.jsonl": "s3://bucket/a?.jsonl",
        "hf://datasets/a/b@main/x.jsonl": "hf://datasets/a/b@main/x.jsonl",
    }.items():
        assert without_secrets(address) == shown
        assert without_secrets(f"at {address} and {address}") == f"at {shown} and {shown}"
    bucket.cp("/bucket/web", "/me:secret@bucket/web", recursive=True)
    made(tmp_path / "out", tokenizer, "memory://me:secret@bucket/web", "memory://bucket/v*.jsonl")
    bucket.rm("/me:secret@bucket", recursive=True)
    assert "secret" not in (tmp_path / "out/manifest.json").read_text()
    assert "memory://bucket/web" in (tmp_path / "out/manifest.json").read_text()
    with pytest.raises(BadInput) as caught:
        check_sources([DomainSource(name="cc", source="memory://me:secret@no/a")], remote=True)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "remedy"),
    [
        ("s3", r"s3:// is not installed .*; install `pip install 'drpruning\[remote\]'`"),
        ("gs", r"gs:// is not installed .*; install `pip install 'drpruning\[remote\]'`"),
        ("https", r"https:// is not installed .*; install `pip install 'drpruning\[remote\]'`"),
        ("abfs", "abfs:// is not installed .*adlfs.*; install its package"),
    ],
)
def test_packages_that_are_missing_are_named(
    scheme: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("s3fs", "gcsfs", "aiohttp", "adlfs"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    with pytest.raises(BadInput, match=rf"cc\.source: {scheme}://.*{remedy}"):
        check_sources([DomainSource(name="cc", source=f"{scheme}://place/a.jsonl")])


def test_addresses_of_a_plan_elsewhere_need_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "find_spec", lambda _name: None)
    check_sources([DomainSource(name="cc", source="s3://place/a.jsonl")])


def test_what_is_an_address() -> None:
    assert is_address("s3://a/b")
    assert is_address("HTTPS://a/b")
    assert not is_address("file:///a/b")
    assert not is_address("a/b")
    assert not is_address("data/s3://a")
