"""Files are on the disk before they get their names, so that a loss of power tears nothing."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drpruning.common.files import atomic_folder, atomic_replace, atomic_write, publish
from drpruning.runs.folder import RunFolder
from helpers.disk_order import DiskOrder
from helpers.small_runs import run


def write_text(folder: Path) -> None:
    atomic_write(folder / "result", "new")


def replace_file(folder: Path) -> None:
    draft = folder / ".draft"
    draft.write_text("new")
    atomic_replace(draft, folder / "result")


def fill(folder: Path) -> None:
    (folder / "inner").mkdir(parents=True)
    for name in ("weights", "inner/state"):
        (folder / name).write_text("new")


def publish_folder(folder: Path) -> None:
    fill(folder / ".draft")
    publish(folder / ".draft", folder / "result")


def fill_folder(folder: Path) -> None:
    with atomic_folder(folder / "result") as draft:
        fill(draft)


FILES = [write_text, replace_file]
FOLDERS = [publish_folder, fill_folder]


@pytest.mark.parametrize("make", FILES + FOLDERS)
@pytest.mark.parametrize("existing", [False, True])
def test_everything_is_synced_before_the_rename_and_the_name_after(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], None],
    existing: bool,
) -> None:
    if existing:
        make(tmp_path)
    order = DiskOrder(monkeypatch)
    make(tmp_path)
    assert order.faults() == []
    assert order.published == [tmp_path / "result"]
    assert {path.name for path in tmp_path.iterdir()} == {"result"}


@pytest.mark.parametrize("make", FILES + FOLDERS)
@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_failed_sync_or_rename_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], failing: str
) -> None:
    make(tmp_path)
    before = content(tmp_path / "result")

    def fail(*_: Any) -> None:
        raise OSError("the disk is broken")

    # Replacing a folder takes two renames; what is tried here is a disk that fails at once.
    names = ["fsync"] if failing == "fsync" else ["rename", "replace"]
    for name in names:
        monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError, match="the disk is broken"):
        make(tmp_path)
    assert content(tmp_path / "result") == before


def content(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {file.relative_to(path).as_posix(): file.read_text() for file in files}


def test_what_a_run_saves_is_on_the_disk_before_it_has_its_name(
    recipe_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe_values["prune"].update(steps=6)
    recipe_values["pretrain"].update(steps=6)
    folder = RunFolder(Path(recipe_values["output"]))
    order = DiskOrder(monkeypatch)
    logs_synced: dict[str, bool] = {}
    before = order._before

    def watch_logs(source: Path, target: Path) -> None:
        before(source, target)
        if target.parent == folder.checkpoints and target.name.startswith("prune-"):
            logs = [folder.metrics, folder.plan_history]
            logs_synced[target.name] = all(map(order.is_synced, logs))

    monkeypatch.setattr(order, "_before", watch_logs)
    run(recipe_values, "prepare", "prune", "pretrain")
    assert order.faults() == []
    published = {path.name for path in order.published}
    assert published >= {"recipe.yaml", "manifest.json", "plan.json", "masks.safetensors",
                         "schedule.json", "pruned", "model"}  # fmt: skip
    # A checkpoint says how long the logs were: they are cut back to it, so they come first.
    assert logs_synced == {"prune-00000005": True, "prune-00000006": True}
    assert published >= {"pretrain-00000005", "pretrain-00000006"}
