"""Names and JSON files of models: one rule each, for models, data and recipes."""

import json
from pathlib import Path

import pytest
from huggingface_hub.utils import HFValidationError, validate_repo_id

from drpruning.common.errors import BadInput
from drpruning.common.files import read_json_object
from drpruning.common.hub import HUB_NAME
from drpruning.data import may_be_hub_name


@pytest.mark.parametrize(
    "name",
    ["gpt2", "meta-llama/Llama-2-7b-hf", "a.b/c_d-1", "_x/y", "org/Qwen2.5-0.5B", "0/1"],
)
def test_names_of_the_hub_are_taken(name: str) -> None:
    validate_repo_id(name)
    assert HUB_NAME.fullmatch(name)
    assert may_be_hub_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../x",
        "a/..",
        "a/b/c",
        "/a",
        "~/a",
        ".hidden",
        "-x",
        "a/-x",
        "a b",
        "文本",
        "a\0b",
    ],
)
def test_paths_are_no_names_of_the_hub(name: str) -> None:
    assert not HUB_NAME.fullmatch(name)
    assert not may_be_hub_name(name)
    with pytest.raises(HFValidationError):
        validate_repo_id(name)


def test_an_object_is_read_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"a": [1, None]}))
    assert read_json_object(file) == {"a": [1, None]}
    for content, message in (
        (b"[1]", "does not hold a JSON object"),
        (b"{", "is not valid JSON: Expecting"),
        (b"\xff", "is not valid JSON: it is no UTF-8 text"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON: a number has more than"),
    ):
        file.write_bytes(content)
        with pytest.raises(BadInput, match=f"^{file} {message}"):
            read_json_object(file)
        with pytest.raises(BadInput, match=f"^model.source: {file} {message}"):
            read_json_object(file, "model.source")


def test_the_size_of_a_file_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"a": 1}')
    assert read_json_object(file, largest=8) == {"a": 1}
    with pytest.raises(BadInput, match=r"x\.json has 8 bytes, more than the 7 that"):
        read_json_object(file, largest=7)


def test_what_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.json cannot be read: no such file or directory"):
        read_json_object(tmp_path / "none.json", "field")
    with pytest.raises(BadInput, match=r"^field: .* cannot be read: is a directory"):
        read_json_object(tmp_path, "field")
