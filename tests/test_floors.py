"""How the package is built: who may import whom, what does without torch, how long things may be.

To add a room, name it on its floor in `FLOORS`, and in `WITHOUT_TORCH` if it needs no torch.
"""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import drpruning

PACKAGE = Path(drpruning.__file__).parent
FLOORS = [  # from the ground up; a module imports from its own room and from lower floors
    {"common"},
    {"recipe", "scheduling", "pruning", "distillation", "data"},  # planned: domains
    {"runs", "models"},  # planned: endpoints
    {"training", "report", "evaluation"},
    {"pipeline", "integrations"},  # planned: tuning
    {"cli"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
WITHOUT_TORCH = {
    "common",
    "recipe",
    "scheduling",
    "data",
    "runs",
    "evaluation.prompts",
    "evaluation.significance",
    "evaluation.task_groups",
    "pruning.clients",
    "pruning.families",
    "pruning.plan",
    "pruning.shape_search",
    "pruning.shapes",
    "pruning.similarity",
    "models.auxiliary_files",
    "models.card",
    "models.config_values",
    "models.files",
    "models.fingerprint",
    "models.inspect",
    "models.memory",
    "models.published_config",
    "models.tokenizer",
    "models.weight_headers",
}
"""Complete rooms, and single modules of the rooms in which others need torch."""
MOST_FILE_LINES, MOST_FUNCTION_LINES = 450, 60


@dataclass(frozen=True)
class Module:
    """A source file of the package.

    Attributes:
        name: Dotted, without `drpruning`: `data.mixture`; of a room's `__init__.py`, `data`.
    """

    path: Path
    name: str

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(ast.parse(self.text)))

    @cached_property
    def imports(self) -> list[str]:
        """Dotted names of all that is imported: at the top, in functions, for types, by text."""
        return sorted(set(self._imports()))

    def _imports(self) -> Iterator[str]:
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from (f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Constant) and str(node.value) in MODULE_NAMES:
                yield node.value  # importlib.import_module, python -m

    @property
    def inner_imports(self) -> list[str]:
        """Those from the package, without its name in front."""
        return [n.partition(".")[2] for n in self.imports if n.partition(".")[0] == "drpruning"]


def _module(path: Path) -> Module:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return Module(path, ".".join(part for part in parts if part != "__init__"))


MODULES = {module.name: module for module in map(_module, sorted(PACKAGE.rglob("*.py")))}
MODULE_NAMES = {f"drpruning.{name}" for name in MODULES}


def defining_module(name: str) -> str:
    """The module that an imported name is from; a room's `__init__.py` may only hand it on."""
    module = name
    while module not in MODULES:
        module = module.rpartition(".")[0]
    for node in MODULES[module].nodes:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if f"{module}.{alias.asname or alias.name}" == name:
                    return defining_module(f"{node.module}.{alias.name}".partition(".")[2])
    return module


def needs_no_torch(name: str) -> bool:
    return name == "" or name in WITHOUT_TORCH or name.partition(".")[0] in WITHOUT_TORCH


def test_the_package_has_these_rooms_and_no_loose_modules() -> None:
    found = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert found == {*FLOOR_OF, "__init__.py", "py.typed"}
    assert MODULES.keys() >= FLOOR_OF.keys(), "every room has an __init__.py"
    assert [name for name in WITHOUT_TORCH if name not in MODULES] == []


def test_imports_are_absolute_and_point_to_lower_floors() -> None:
    wrong = []
    for module in MODULES.values():
        floor = FLOOR_OF.get(module.room, -1)
        wrong += [f"{module.name}: {name}" for name in module.imports if name.startswith(".")]
        for name in module.inner_imports:
            room = name.partition(".")[0]
            inside = room == module.room or (name in {"", "__version__"} and module.name != "")
            if not inside and FLOOR_OF.get(room, len(FLOORS)) >= floor:
                wrong.append(f"{module.name} imports {name}")
    assert wrong == []


def test_no_module_imports_itself_through_others() -> None:
    graph: dict[str, set[str]] = {}
    for module in MODULES.values():
        above = {module.name[: match.start()] for match in re.finditer(r"\.", module.name)}
        edges = graph[module.name] = set()
        for name in module.inner_imports:
            ends = [match.start() for match in re.finditer(r"\.", name)] + [len(name)]
            run = [name[:end] for end in ends if name[:end] in MODULES]
            # Packages above a module are run before it anyway; to name one explicitly is another
            # matter: it may have to hand on what is not yet defined.
            edges.update(place for place in run if place not in above)
            edges.update(run[-1:])
        edges.discard(module.name)
    order = graphlib.TopologicalSorter(graph).static_order()  # CycleError names the circle
    assert set(order) == graph.keys()


def test_rooms_without_torch_import_neither_it_nor_modules_that_need_it() -> None:
    wrong = []
    for module in MODULES.values():
        if module.name == "" or not needs_no_torch(module.name):
            continue
        wrong += [
            f"{module.name} imports {name}"
            for name in module.imports
            if {"torch", "accelerate"} & set(name.split("."))
        ]
        wrong += [
            f"{module.name} imports {name}"
            for name in module.inner_imports
            if not needs_no_torch(defining_module(name))
        ]
    assert wrong == []


def test_rooms_without_torch_can_be_imported_where_there_is_none() -> None:
    names = [f"drpruning.{name}".rstrip(".") for name in MODULES if needs_no_torch(name)]
    code = (
        "import importlib, sys\n"
        "for name in ('torch', 'transformers', 'accelerate'):\n"
        "    sys.modules[name] = None\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "print('done')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "done", done.stderr


def test_files_and_functions_fit_on_a_few_screens() -> None:
    wrong = []
    for module in MODULES.values():
        name = module.path.relative_to(PACKAGE).as_posix()
        if (lines := len(module.text.splitlines())) > MOST_FILE_LINES:
            wrong.append(f"{name} has {lines} lines")
        for node in module.nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MOST_FUNCTION_LINES:
                    wrong.append(f"{name}: {node.name} has {lines} lines")
    assert wrong == []


def test_only_the_run_folder_knows_its_names() -> None:
    names = r"(.*/)?(pruned|plan\.json|plans\.jsonl|metrics\.jsonl|schedule\.json)"
    found = {
        module.name
        for module in MODULES.values()
        for node in module.nodes
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(names, node.value)
    }
    assert found == {"runs.folder"}
