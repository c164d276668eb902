import gzip
import subprocess
import sys

import pytest

from drpruning.common.errors import BadInput
from drpruning.data import DomainSource, check_sources, estimate_tokens


@pytest.fixture
def files(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "sub/c.jsonl", "sub/notes.md", "sub/.hidden/d.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"text": "some words"}\n' * 20)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "bare").mkdir()
    return tmp_path


def domain(source, name="cc", **fields):
    return DomainSource(name=name, source=str(source), **fields)


def test_good_sources_pass(files):
    check_sources(
        [
            domain(files / "*.jsonl", "a", validation=str(files / "sub/c.jsonl")),
            domain(files / "sub", "b", where={"set": "x"}),
            domain(files / "sub", "c", where={"set": ["y", "z"]}),
            domain("some-org/some-dataset", "d"),
            domain("some-org/some-dataset", "e", split="test"),
        ]
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.jsonl", r"data\.domains\.cc\.source: .*missing\.jsonl does not exist"),
        ("missing/*.jsonl", "no file matches"),
        ("bare", "the folder .* has no .jsonl, .* or .txt file"),
        ("empty.jsonl", "is empty"),
        ("sub/notes.md", "notes.md is not a .jsonl"),
        ("sub/*", "notes.md is not a .jsonl"),
    ],
)
def test_unusable_source_is_named(files, source, message):
    with pytest.raises(BadInput, match=message):
        check_sources([domain(files / source)])
    with pytest.raises(BadInput, match=r"cc\.validation"):
        check_sources([domain(files / "a.jsonl", validation=str(files / source))])


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "ü"])
def test_names_that_are_no_folder_names_are_refused(files, name):
    with pytest.raises(BadInput, match="letters, digits"):
        check_sources([domain(files / "a.jsonl", name)])


def test_sources_that_overlap_are_refused(files):
    with pytest.raises(BadInput, match=r"cc\.validation: .*a\.jsonl is in the source as well"):
        check_sources([domain(files, validation=str(files / "a.jsonl"))])
    with pytest.raises(BadInput, match=r"a\.jsonl is used by data\.domains\.x too"):
        check_sources([domain(files / "a.jsonl", "x"), domain(files / "*.jsonl", "y")])
    with pytest.raises(BadInput, match="another domain of that name"):
        check_sources([domain(files / "a.jsonl", "x"), domain(files / "b.jsonl", "X")])


def test_empty_descriptions_are_refused(files):
    with pytest.raises(BadInput, match=r"data\.domains is empty"):
        check_sources([])
    with pytest.raises(BadInput, match=r"cc\.source is empty"):
        check_sources([domain("")])
    with pytest.raises(BadInput, match=r"cc\.text_field is empty"):
        check_sources([domain(files / "a.jsonl", text_field="")])


def test_tokens_are_estimated_from_file_sizes_where_they_tell(files):
    size = (files / "a.jsonl").stat().st_size
    assert estimate_tokens(domain(files / "a.jsonl")) == size // 4
    assert estimate_tokens(domain(files)) == 3 * size // 4
    with gzip.open(files / "z.jsonl.gz", "wb") as stream:
        stream.write(b"{}")
    assert estimate_tokens(domain(files / "z.jsonl.gz")) is None
    assert estimate_tokens(domain(files / "a.jsonl", where={"set": "x"})) is None
    assert estimate_tokens(domain("some-org/some-dataset")) is None


def test_import_and_checks_load_nothing_heavy(files):
    code = (
        "import sys; from drpruning.data import *; "
        f"check_sources([DomainSource(name='a', source={str(files / 'a.jsonl')!r})]); "
        "print([m for m in ('torch', 'datasets', 'transformers', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
