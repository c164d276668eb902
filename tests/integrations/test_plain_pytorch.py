"""The example of a plain PyTorch loop runs, and the data follows the ratio."""

import runpy
from collections.abc import Mapping
from pathlib import Path

import pytest

from drpruning.data import Mixture, Segment

EXAMPLE = Path(__file__).parents[2] / "examples" / "plain_pytorch.py"


def test_the_example_follows_the_ratio_within_one_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted: dict[str, float] = {}
    plan = Mixture.plan_segment

    def planned(mixture: Mixture, ratio: Mapping[str, float], steps: int) -> Segment:
        for name, share in ratio.items():
            had = wanted.get(name, 0.0)
            assert abs(mixture.consumed[name] - had) < 1
            wanted[name] = had + share * steps * mixture.global_batch
        return plan(mixture, ratio, steps)

    monkeypatch.setattr(Mixture, "plan_segment", planned)
    result = runpy.run_path(str(EXAMPLE))
    assert result["mixture"].step == result["STEPS"]
    consumed = result["mixture"].consumed
    assert all(abs(consumed[name] - wanted[name]) < 1 for name in wanted)
    assert min(consumed, key=consumed.get) == "slow"
    assert len(capsys.readouterr().out.splitlines()) == 20


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 40
