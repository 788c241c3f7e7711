"""A room imports only from rooms that stand below it."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# From top to bottom; docs/architecture.md draws them. `perf` stands above `models`
# because its FLOP formulas read model sizes.
ROOMS = (
    "cli", "configs", "paper", "serve", "reports", "capfilt", "evaluation", "inference",
    "planning", "training", "losses", "generation", "convert", "perf", "models", "nn",
    "data", "metrics", "parallel",
)  # fmt: skip


def imported_modules(path: pathlib.Path) -> set[str]:
    """List the modules that a file imports, also lazily or for type checking."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def rooms_of(modules: set[str]) -> set[str]:
    """Return the rooms of this package that modules belong to."""
    return {name.split(".")[1] for name in modules if name.startswith("blip2_jax.")}


def files_of(room: str) -> list[pathlib.Path]:
    """List the Python files of a room."""
    return sorted((ROOT / "blip2_jax" / room).rglob("*.py"))


def test_only_the_package_itself_stands_outside_the_rooms():
    entries = {path.name for path in (ROOT / "blip2_jax").iterdir()}
    assert entries - {"__pycache__"} <= {"__init__.py", "py.typed", *ROOMS}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_below(room):
    allowed = set(ROOMS[ROOMS.index(room) :])
    public = {"__version__", "load"}  # of the package itself
    upward = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files_of(room)
        for name in rooms_of(imported_modules(path)) - allowed - public
    }
    assert not upward


def test_nothing_imports_the_commands_or_experiments_by_another_name():
    """`launch` and the top-level `configs` are for users, not for the package."""
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for room in ROOMS
        for path in files_of(room)
        for name in imported_modules(path)
        if name.split(".")[0] in {"launch", "configs", "tests", "benchmarks"}
    }
    assert not wrong


def test_imports_within_the_package_go_in_no_circle():
    """Modules of one room may import each other, but not in a circle."""
    edges = {}
    for room in ROOMS:
        for path in files_of(room):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            edges[name.removesuffix(".__init__")] = imported_modules(path)
    graph = {
        name: {
            target
            for wanted in imports
            for target in (wanted, wanted.rpartition(".")[0])
            if target in edges and target != name
        }
        for name, imports in edges.items()
    }
    while leaves := {name for name, targets in graph.items() if not targets}:
        graph = {
            name: targets - leaves
            for name, targets in graph.items()
            if name not in leaves
        }
    assert not graph, f"circle among {sorted(graph)}"
