import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from drpruning.common.errors import BadInput
from drpruning.data import DomainSource, check_sources


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
        ("bare", "the folder .* has no .jsonl, .* or .parquet file"),
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


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
@pytest.mark.parametrize("way", ["named", "glob", "folder", "validation"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, monkeypatch, kind, way):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)  # the name of a socket may not be long
    special, listener = tmp_path / "a/x.jsonl", None
    if kind == "pipe":
        os.mkfifo(special)
    elif kind == "socket":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("a/x.jsonl")
    else:
        special.symlink_to(os.devnull)
    (tmp_path / "a/y.jsonl").write_text('{"text": "some words"}\n')
    sources = {"named": special, "glob": tmp_path / "a/*.jsonl", "folder": tmp_path / "a"}
    own = domain(sources.get(way, tmp_path / "a/y.jsonl"))
    if way == "validation":
        own = domain(tmp_path / "a/y.jsonl", validation=str(special))
    part = "validation" if way == "validation" else "source"
    try:
        with pytest.raises(BadInput, match=rf"cc\.{part}: .*x\.jsonl is a {kind}, .* to a file"):
            check_sources([own])
    finally:
        if listener is not None:
            listener.close()


def test_a_link_that_leads_nowhere_is_refused(files):
    (files / "sub/lost.jsonl").symlink_to(files / "nothing")
    for place in ("sub/lost.jsonl", "sub/*.jsonl", "sub"):
        with pytest.raises(BadInput, match=r"lost\.jsonl is a link to a file that does not exist"):
            check_sources([domain(files / place)])


def test_text_that_may_not_be_read_is_named(files, monkeypatch):
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: access(path, mode) and Path(path).name != "b.jsonl"
    )
    message = r"cc\.(source|validation): .*b\.jsonl cannot be read: permission denied; change"
    for place in (files / "b.jsonl", files / "*.jsonl", files):
        with pytest.raises(BadInput, match=message):
            check_sources([domain(place)])
    with pytest.raises(BadInput, match=message):
        check_sources([domain(files / "a.jsonl", validation=str(files / "b.jsonl"))])


@pytest.mark.parametrize("call", ["scandir", "stat"])
def test_folders_that_may_not_be_read_are_named(files, monkeypatch, call):
    original = getattr(os, call)

    def refuse(path, *rest, **options):
        if Path(path) in {files / "sub", files / "sub/c.jsonl"}:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path, *rest, **options)

    monkeypatch.setattr(os, call, refuse)
    source = files if call == "scandir" else files / "sub/c.jsonl"
    with pytest.raises(BadInput, match=r"cc\.source: .*sub.* cannot be read: permission denied"):
        check_sources([domain(source)])


def test_validation_text_that_another_domain_trains_on_is_refused(files):
    message = (
        r"domains\.x\.validation: .*b\.jsonl is the training text of data\.domains\.y; use other"
    )
    for order in (1, -1):
        with pytest.raises(BadInput, match=message):
            check_sources(
                [
                    domain(files / "a.jsonl", "x", validation=str(files / "b.jsonl")),
                    domain(files / "b.jsonl", "y"),
                ][::order]
            )
    # `where` may tell the rows of one file apart.
    check_sources(
        [
            domain(files / "a.jsonl", "x", validation=str(files / "b.jsonl"), where={"set": "x"}),
            domain(files / "b.jsonl", "y", where={"set": "y"}),
        ]
    )


def test_import_and_checks_load_nothing_heavy(files):
    code = (
        "import sys; from drpruning.data import *; "
        f"check_sources([DomainSource(name='a', source={str(files / 'a.jsonl')!r})]); "
        "print([m for m in ('torch', 'datasets', 'transformers', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
