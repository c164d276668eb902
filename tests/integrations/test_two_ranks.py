"""Two ranks train on what one does, in the Trainer and in TRL's SFTTrainer."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["transformers", "trl", "distillation"])
def test_two_ranks_train_on_what_one_does(tmp_path: Path, trainer: str) -> None:
    seen: dict[int, list[dict[str, Any]]] = {}
    for ranks, micro_batch in ((1, 4), (2, 2)):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone",
             f"--nproc-per-node={ranks}", HERE / "two_ranks.py", folder, str(micro_batch), trainer],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
        )  # fmt: skip
        seen[ranks] = [json.loads((folder / f"rank{i}.json").read_text()) for i in range(ranks)]
    (one,), (first, second) = seen[1], seen[2]
    for key in ("decisions", "decisions_resumed", "state", "state_resumed"):
        assert first[key] == second[key]
    assert first["decisions"] == first["decisions_resumed"]
    for a, b in zip(one["decisions"], first["decisions"], strict=True):
        assert a["ratio"] == pytest.approx(b["ratio"], abs=1e-4)
        assert a["realised_share"] == b["realised_share"]
    assert len(one["divergence"]) == (12 if trainer == "distillation" else 0)
    assert first["divergence"] == second["divergence"]
    assert first["divergence"] == pytest.approx(one["divergence"], rel=1e-4)
    for step, rows in one["rows"].items():
        assert sorted(rows) == sorted(first["rows"][step] + second["rows"][step])
    for rank in (first, second):
        assert rank["rows_resumed"] == {s: r for s, r in rank["rows"].items() if int(s) >= 8}
