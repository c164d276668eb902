"""Labels that do not overlap, and SVG that fits into a page."""

from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpruning.report.drawing import LARGE, SERIES_DARK, SERIES_LIGHT, panel, spread, style, to_svg

positions = st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=15)


@given(positions, st.floats(0.001, 0.2))
def test_spread_keeps_order_gap_and_bounds(wanted: list[float], gap: float) -> None:
    placed = spread(wanted, gap, 0.0, 1.0)
    gap = min(gap, 1.0 / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    in_order = [placed[index] for index in order]
    assert min(placed) >= -1e-9
    assert max(placed) <= 1.0 + 1e-9
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(in_order))


def test_spread_leaves_alone_what_is_apart() -> None:
    assert spread([0.9, 0.1, 0.5], 0.1, 0.0, 1.0) == pytest.approx([0.9, 0.1, 0.5])
    assert spread([], 0.1, 0.0, 1.0) == []


def test_colours_become_variables_and_ids_get_the_prefix() -> None:
    with style():
        axis = panel(LARGE)
        for colour in SERIES_LIGHT:
            axis.plot([0, 1], [0, 1], color=colour, marker="o")
        svg = to_svg(axis, ident="one", title="A <title>", description="What & why")
    root = ET.fromstring(svg)  # noqa: S314
    assert all(colour not in svg.lower() for colour in SERIES_LIGHT)
    assert all(f"var(--series-{index})" in svg for index in range(len(SERIES_LIGHT)))
    idents = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(idents) == len(set(idents))
    assert all(ident == "one" or ident.startswith("one-") for ident in idents if ident)
    targets = {element.get("href") for element in root.iter()} - {None}
    assert targets
    assert {target.removeprefix("#") for target in targets if target} <= set(idents)
    assert root.get("role") == "img"
    labels = [root.find(f".//*[@id='{name}']") for name in root.get("aria-labelledby", "").split()]
    assert [label.text for label in labels if label is not None] == ["A <title>", "What & why"]


def test_both_palettes_have_the_same_size() -> None:
    assert len(SERIES_LIGHT) == len(SERIES_DARK) == len(set(SERIES_LIGHT)) == len(set(SERIES_DARK))
