"""The floor plan: what lies where in the package, and who may import whom."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tatok_pipe.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tatok_pipe"
# From below to above: a room imports from its own and from those before it.
FLOORS = (
    ("errors", "parallel", "records", "seeds", "version"),
    ("config",),
    ("storage",),
    ("images", "nn", "training"),
    ("runs",),
    ("tokens",),
    ("tokenizer",),
    ("ar",),
    ("encoding", "report"),
    ("evaluation",),
    ("ray_runtime",),
    ("api",),
    ("commands",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(path: Path) -> frozenset[str]:
    """What a file imports, by full names, in functions and for type checkers too."""

    def walk(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: a relative import"
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
            else:
                walk([child for child in ast.walk(node) if child is not node and isinstance(child, ast.stmt)])

    found: set[str] = set()
    walk(ast.parse(path.read_text()).body)
    return frozenset(found)


def room(name: str) -> str:
    return name.split(".")[1]


def test_the_top_holds_entries_and_few_things_that_all_use() -> None:
    loose = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert loose - set(COMMANDS) == {"api", "errors", "parallel", "records", "seeds", "version"}
    for command in COMMANDS:
        assert len((PACKAGE / f"{command}.py").read_text().splitlines()) <= 30
    assert len([path for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()]) <= 14


def test_every_room_imports_from_below() -> None:
    upward = []
    for name, path in modules().items():
        if "." not in name or room(name) not in FLOOR:
            continue  # an entry
        for imported in imports(path):
            if not imported.startswith("tatok_pipe."):
                continue
            above = room(imported) not in FLOOR or FLOOR[room(imported)] > FLOOR[room(name)]
            beside = FLOOR.get(room(imported)) == FLOOR[room(name)] and room(imported) != room(name)
            if above or (beside and len(FLOORS[FLOOR[room(name)]]) > 1):
                upward.append(f"{name} -> {imported}")
    assert not upward


def test_there_is_no_circle() -> None:
    known = modules()
    arrows = {
        name: {
            imported if imported in known else imported.rpartition(".")[0]  # a module, or a name in one
            for imported in imports(path)
        }
        - {name}
        for name, path in known.items()
    }
    while leaves := {name for name, targets in arrows.items() if not targets & arrows.keys()}:
        for name in leaves:
            del arrows[name]
    assert not arrows


def test_ray_is_a_matter_of_commands_and_its_runtime() -> None:
    users = {
        room(name)
        for name, path in modules().items()
        if "." in name and any(re.match(r"ray(\.|$)", each) for each in imports(path))
    }
    assert users <= {"commands", "ray_runtime"}


@pytest.mark.parametrize("module", [*COMMANDS, "__main__"])
def test_options_come_before_torch_ray_and_pyarrow(module: str) -> None:
    heavy = {"torch", "ray", "pyarrow", "PIL", "scipy", "matplotlib"}
    code = f"import sys, tatok_pipe.{module}; print(*({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_models_as_python_objects_need_no_ray() -> None:
    code = "import sys, tatok_pipe.api; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
