"""Checkpoints: good ones are used, damaged ones are named and left alone, nothing good is lost."""

import json
import re
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint import filesystem

from drpruning.common import files
from drpruning.common.errors import BadInput
from drpruning.recipe import Checkpoint
from drpruning.training import checkpoint as checkpoint_module
from drpruning.training import manifest, tensors
from drpruning.training.checkpoint import (
    CheckpointManager,
    list_checkpoints,
    read_state,
    remove_checkpoints,
)
from drpruning.training.tensors import read_tensors, write_tensors
from helpers.file_faults import FULL, content, cut, failing, flip
from helpers.warned import warned

Spoil = Callable[[Path], None]
TENSORS = "shard-00001-model-00001-of-00001.safetensors"


class Shelf:
    """Checkpoints of a small layer."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.kept = CheckpointManager(
            folder, "prune", Checkpoint(**settings), Accelerator(cpu=True)
        )
        self.layer = nn.Linear(40, 30)
        self.optimizer = torch.optim.AdamW(self.layer.parameters(), lr=0.1, fused=True)

    def train(self) -> None:
        self.optimizer.zero_grad()
        self.layer(torch.ones(1, 40)).square().sum().backward()
        self.optimizer.step()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.layer.named_parameters())

    def write(self, folder: Path) -> None:
        write_tensors(folder, self.parameters, self.optimizer)

    def save(self, *steps: int, state: Mapping[str, Any] | None = None) -> OSError | None:
        error = None
        for step in steps:
            self.train()
            error = self.kept.save(step, lambda: state or {}, self.write)
        return error

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


def test_what_is_read_is_what_was_written_to_the_bit(tmp_path: Path) -> None:
    one, two = Shelf(tmp_path), Shelf(tmp_path)
    assert one.save(1, 2, 3, state={"ratio": {"a": 1 / 3}}) is None
    path = two.kept.latest()
    assert path is not None
    assert read_state(path) == {"step": 3, "ratio": {"a": 1 / 3}}
    read_tensors(path, two.parameters, two.optimizer)
    one.train()
    two.train()
    assert torch.equal(one.layer.weight, two.layer.weight)
    assert torch.equal(one.layer.bias, two.layer.bias)


@pytest.mark.parametrize(
    "other", [nn.Linear(40, 30, bias=False), nn.Linear(40, 31), nn.Linear(1, 30)]
)
def test_checkpoint_of_another_model_is_refused_and_changes_nothing(
    tmp_path: Path, other: nn.Linear
) -> None:
    shelf = Shelf(tmp_path)
    shelf.save(3)
    before = other.weight.detach().clone()
    with pytest.raises(BadInput, match="another model"):
        read_tensors(
            tmp_path / "prune-00000003",
            dict(other.named_parameters()),
            torch.optim.AdamW(other.parameters()),
        )
    assert torch.equal(other.weight, before)


def of_another_step(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("prune-00000002"), folder)


def with_another_number(folder: Path) -> None:
    listed = json.loads((folder / "manifest.json").read_text())
    listed["files"][TENSORS]["crc32"] += 1
    (folder / "manifest.json").write_text(json.dumps(listed))


def of_an_older_version(folder: Path) -> None:
    manifest.write_manifest(folder, {"version": 1, "phase": "prune", "step": 3})


def emptied(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def with_a_folder_for_a_file(folder: Path) -> None:
    (folder / "state.json").unlink()
    (folder / "state.json").mkdir()


def with_a_deep_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 100_000)


def with_a_list_as_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


SPOILED: dict[str, tuple[Spoil, str]] = {
    "torn tensors": (lambda f: cut(f / TENSORS), rf"{TENSORS} has \d+ bytes, not \d+"),
    "altered tensors": (lambda f: flip(f / TENSORS), f"{TENSORS} is altered"),
    "altered header": (lambda f: flip(f / TENSORS, 100), f"{TENSORS} is altered"),
    "altered state": (lambda f: flip(f / "state.json", 2), "state.json is altered"),
    "no state": (lambda f: (f / "state.json").unlink(), "state.json is missing"),
    "no tensors": (lambda f: (f / TENSORS).unlink(), f"{TENSORS} is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
    "torn manifest": (lambda f: cut(f / "manifest.json"), "manifest.json is damaged"),
    "a list as manifest": (with_a_list_as_manifest, "manifest.json is damaged"),
    "a deep manifest": (with_a_deep_manifest, "manifest.json is damaged"),
    "altered manifest": (with_another_number, "manifest.json is damaged"),
    "another step's": (of_another_step, "manifest.json has step 2, not 3"),
    "older version": (of_an_older_version, "manifest.json has version 1, not 2"),
    "empty folder": (emptied, "manifest.json is missing"),
    "a folder for a file": (with_a_folder_for_a_file, "state.json (has|cannot be read)"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "words"), SPOILED.values(), ids=SPOILED)
def test_the_last_good_one_is_used_and_one_line_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Spoil, words: str
) -> None:
    Shelf(tmp_path, keep=3).save(1, 2, 3)
    good, bad = tmp_path / "prune-00000002", tmp_path / "prune-00000003"
    spoil(bad)
    before = content(tmp_path)
    shelf = Shelf(tmp_path)
    assert shelf.kept.latest() == good
    (line,) = warned(caplog)
    assert line.startswith("checkpoint prune-00000003 is passed over: ")
    assert re.search(words, line)
    assert content(tmp_path) == before


def test_every_newer_one_that_is_bad_gets_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Shelf(tmp_path, keep=3).save(1, 2, 3)
    cut(tmp_path / "prune-00000002" / "state.json")
    (tmp_path / "prune-00000003" / TENSORS).unlink()
    shelf = Shelf(tmp_path)
    assert shelf.kept.latest() == tmp_path / "prune-00000001"
    assert len(warned(caplog)) == 2


def test_vanished_checkpoint_leaves_the_one_before(tmp_path: Path) -> None:
    Shelf(tmp_path).save(1, 2)
    shutil.rmtree(tmp_path / "prune-00000002")
    assert Shelf(tmp_path).kept.latest() == tmp_path / "prune-00000001"
    shutil.rmtree(tmp_path)
    shelf = Shelf(tmp_path)
    assert shelf.kept.latest() is None
    assert shelf.save(7) is None


def test_no_good_one_left_is_an_error_and_not_a_start_from_scratch(tmp_path: Path) -> None:
    Shelf(tmp_path).save(1, 2)
    for path in tmp_path.iterdir():
        cut(path / TENSORS)
    before = content(tmp_path)
    for _ in range(2):
        with pytest.raises(
            BadInput, match=r"no checkpoint of prune can be used .*shard.*remove .*prune-\*"
        ):
            Shelf(tmp_path).kept.latest()
    assert content(tmp_path) == before


def test_what_a_crash_left_unfinished_is_removed(tmp_path: Path) -> None:
    Shelf(tmp_path).save(1)
    for name in (".prune-00000002.partial", ".prune-00000000.old", ".pretrain-00000002.partial"):
        (tmp_path / name).mkdir()
    assert Shelf(tmp_path).kept.latest() == tmp_path / "prune-00000001"
    assert Shelf(tmp_path).names() == [".pretrain-00000002.partial", "prune-00000001"]


def test_bad_ones_do_not_count_among_those_that_are_kept(tmp_path: Path) -> None:
    Shelf(tmp_path, keep=4).save(1, 2, 3, 4)
    for step in (3, 4):
        cut(tmp_path / f"prune-0000000{step}" / TENSORS)
    shelf = Shelf(tmp_path, keep=2)
    assert shelf.kept.latest() == tmp_path / "prune-00000002"
    shelf.save(3)  # replaces the bad one
    assert shelf.names() == ["prune-00000002", "prune-00000003", "prune-00000004"]
    assert Shelf(tmp_path).kept.latest() == tmp_path / "prune-00000003"
    shelf.save(5)
    assert shelf.names() == ["prune-00000003", "prune-00000004", "prune-00000005"]


def test_newest_and_every_nth_are_kept(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, keep=2, keep_every=4)
    shelf.save(*range(2, 15, 2))
    left = [4, 8, 12, 14]
    assert [int(p.name[-8:]) for p in list_checkpoints(tmp_path, "prune")] == left
    remove_checkpoints(tmp_path, "prune", Checkpoint(keep_every=4))
    assert [int(p.name[-8:]) for p in list_checkpoints(tmp_path, "prune")] == left[:3]
    remove_checkpoints(tmp_path, "prune", Checkpoint())
    assert not shelf.names()


def test_due_by_steps_by_minutes_and_where_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(checkpoint_module.time, "monotonic", lambda: now)
    shelf = Shelf(tmp_path, every_steps=10, keep_every=25, every_minutes=2)
    due = shelf.kept.is_due
    assert [step for step in range(1, 60) if due(step)] == [10, 20, 25, 30, 40, 50]
    now += 119
    assert not due(13)
    now += 1
    assert due(13)
    shelf.save(13)
    assert not due(14)
    now += 121
    assert due(14)
    assert not Shelf(tmp_path, every_steps=10).kept.is_due(14)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (filesystem.os, "fsync"),
        (checkpoint_module, "write_manifest"),
        (checkpoint_module, "publish"),
    ],
    ids=["tensors", "manifest", "publishing"],
)
def test_full_disk_harms_nothing_and_the_next_save_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str
) -> None:
    shelf = Shelf(tmp_path, keep=1)
    shelf.save(1)
    before = content(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, failing)
        error = shelf.save(2)
    assert error is not None
    assert (error.errno, FULL.strerror in str(error)) == (FULL.errno, True)
    assert content(tmp_path) == before
    assert shelf.names() == ["prune-00000001"]
    assert shelf.save(3) is None
    assert shelf.names() == ["prune-00000003"]


class SecondRankFails:
    """Two ranks, as the first sees them; the other one's disk fails at the given agreement."""

    is_main_process, num_processes, device = True, 2, torch.device("cpu")

    def __init__(self, at: int) -> None:
        self.left = at

    def reduce(self, flag: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        return flag + (self.left == 0)


@pytest.mark.parametrize("at", [1, 2])
def test_rank_that_cannot_write_keeps_all_from_saving(tmp_path: Path, at: int) -> None:
    shelf = Shelf(tmp_path)
    shelf.save(1)
    before = content(tmp_path)
    shelf.kept._accelerator = SecondRankFails(at)
    assert "another rank" in str(shelf.save(2))
    assert content(tmp_path) == before
    assert not list(tmp_path.glob(".*"))


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system refuses files above 8,000 bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_file_that_the_system_refuses_to_write(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    error = shelf.save(1)  # weights and moments take 14,760 bytes
    assert isinstance(error, OSError)
    assert "too large" in str(error)
    assert shelf.names() == []


def test_files_larger_than_a_buffer_and_empty_ones_are_checked(tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(bytes(3_500_000))
    (tmp_path / "empty.bin").touch()
    manifest.write_manifest(tmp_path, {})
    assert manifest.verify(tmp_path, {}) is None
    flip(tmp_path / "large.bin", 2_500_000)
    assert manifest.verify(tmp_path, {}) == "large.bin is altered (its checksum differs)"


def test_several_files_are_read_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "FILE_BYTES", 2000)
    one, two = Shelf(tmp_path), Shelf(tmp_path)
    one.save(1)
    path = tmp_path / "prune-00000001"
    assert len(list(path.glob("*.safetensors"))) > 2
    read_tensors(path, two.parameters, two.optimizer)
    assert torch.equal(one.layer.weight, two.layer.weight)
    for mine, theirs in zip(one.layer.parameters(), two.layer.parameters(), strict=True):
        states = one.optimizer.state[mine], two.optimizer.state[theirs]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][slot], states[1][slot]) for slot in states[0])


def test_files_are_on_the_disk_before_the_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, plain_fsync, plain_rename = set[str](), files.fsync_path, Path.rename

    def fsync(path: Path) -> None:
        plain_fsync(path)
        synced.add(path.name)

    def rename(path: Path, target: Path) -> Path:
        assert synced >= {file.name for file in path.iterdir()} | {path.name}
        return plain_rename(path, target)

    monkeypatch.setattr(files, "fsync_path", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    shelf = Shelf(tmp_path)
    assert shelf.save(1) is None
    assert synced >= {TENSORS, "state.json", "manifest.json"}
