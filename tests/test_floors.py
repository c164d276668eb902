"""Imports inside the package point downward: a room knows only rooms on lower floors."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import drpruning

PACKAGE = Path(drpruning.__file__).parent
FLOORS = [
    {"common"},
    {"recipe", "scheduling", "pruning", "data"},
    {"runs", "models"},
    {"training", "report"},
    {"pipeline", "integrations"},
    {"cli"},
]
"""From the ground up."""
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
WITHOUT_TORCH = ("common", "recipe", "scheduling", "data", "runs")
MOST_LINES = {"report/figures.py": 620}
"""The one file that may be longer than 450 lines, and how long."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(module: Path) -> str:
    return module.relative_to(PACKAGE).as_posix()


def room_of(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0]


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything that is imported, at the top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_package_has_these_rooms_and_no_loose_modules() -> None:
    found = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert found == {*FLOOR_OF, "__init__.py", "py.typed"}


@pytest.mark.parametrize("module", modules(), ids=name_of)
def test_imports_point_to_lower_floors(module: Path) -> None:
    own = room_of(module)
    for name in imported(ast.parse(module.read_text())):
        parts = name.split(".")
        if parts[0] != "drpruning" or parts[1] in {own, "__version__"}:
            continue
        assert FLOOR_OF[parts[1]] < FLOOR_OF[own], f"{own} imports {name}"


def test_no_module_imports_itself_through_others() -> None:
    graph = {}
    for module in modules():
        dotted = ".".join(["drpruning", *module.relative_to(PACKAGE).with_suffix("").parts])
        dotted = dotted.removesuffix(".__init__")
        graph[dotted] = {
            known
            for name in imported(ast.parse(module.read_text()))
            for known in (name, name.rpartition(".")[0])
            if known.startswith("drpruning.")
        }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name in done:
            return
        for other in graph[name] & graph.keys():
            # A package and its own modules name each other only to hand names on.
            if not name.startswith(f"{other}.") and other != name:
                visit(other, (*above, name))
        done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("module", modules(), ids=name_of)
def test_rooms_without_torch_never_import_it(module: Path) -> None:
    if room_of(module) in WITHOUT_TORCH:
        names = imported(ast.parse(module.read_text()))
        roots = {name.split(".")[0] for name in names}
        assert not roots & {"torch", "accelerate"}


@pytest.mark.parametrize("module", modules(), ids=name_of)
def test_files_and_functions_fit_on_a_few_screens(module: Path) -> None:
    text = module.read_text()
    assert text.count("\n") <= MOST_LINES.get(name_of(module), 450)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} has more than 60 lines"


def test_only_the_run_folder_knows_its_names() -> None:
    names = {'"pruned"', '"plan.json"', '"metrics.jsonl"', '"plans.jsonl"', '"schedule.json"'}
    found = {
        name_of(module) for module in modules() if any(name in module.read_text() for name in names)
    }
    assert found == {"runs/folder.py"}
