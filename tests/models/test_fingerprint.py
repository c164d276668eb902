"""The fingerprint of a model changes with every file that decides what it computes."""

import json
import os
import shutil
from pathlib import Path

import pytest

from drpruning.common.errors import BadInput
from drpruning.models import fingerprint


def test_it_is_of_the_contents_and_not_of_place_or_time(model_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model_folder, tmp_path / "copy")
    os.utime(copy / "model.safetensors", (1, 1))
    (copy / "README.md").write_text("another card")
    found = fingerprint.model_fingerprint(copy)
    assert found == fingerprint.model_fingerprint(model_folder)
    assert len(found) == 32


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_one_byte_changes_it_though_size_and_time_stay(
    model_folder: Path, tmp_path: Path, file: str
) -> None:
    copy = shutil.copytree(model_folder, tmp_path / "copy")
    before = (copy / file).stat()
    content = bytearray((copy / file).read_bytes())
    content[-1] ^= 1
    (copy / file).write_bytes(content)
    os.utime(copy / file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fingerprint.model_fingerprint(copy) != fingerprint.model_fingerprint(model_folder)


def test_a_file_more_or_under_another_name_changes_it(model_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model_folder, tmp_path / "copy")
    (copy / "added_tokens.json").write_text(json.dumps({}))
    first = fingerprint.model_fingerprint(copy)
    (copy / "added_tokens.json").rename(copy / "other.json")
    assert (
        len(
            {
                first,
                fingerprint.model_fingerprint(copy),
                fingerprint.model_fingerprint(model_folder),
            }
        )
        == 3
    )


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"MODEL: .*has no safetensors weights"):
        fingerprint.model_fingerprint(tmp_path, "MODEL")


def test_a_model_on_the_hub_is_looked_for_in_the_cache_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert fingerprint.model_folder(str(tmp_path)) == tmp_path
    assert fingerprint.model_folder("nobody/none") is None
