"""Imports inside the package point down only, folder by folder."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tf_lbsgd

PACKAGE = Path(tf_lbsgd.__file__).parent

# From the top down. A folder imports what stands below it; folders of one floor do not see each
# other. A file at the top level is a floor of its own, in the order given.
FLOORS = (
    ("cli",),
    ("doctor",),
    ("export", "prediction"),
    ("evaluation",),
    ("training", "report"),
    ("builders", "summaries"),
    ("preparation",),
    ("provenance", "callbacks"),
    ("step", "input_pipeline", "checkpoints"),
    ("distribution", "scaling_rules"),
    ("optimizers", "schedules", "models"),
    ("private_api",),
    ("workers",),
    ("run",),
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
WITHOUT_TENSORFLOW = ("run", "workers")


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, anywhere in it, for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def upward_imports(files: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in files
        for name in imports_of(path)
        if name.startswith("tf_lbsgd.")
        and (room := name.split(".")[1]) != room_of(path)
        and FLOOR_OF[room] <= FLOOR_OF[room_of(path)]
    ]


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    return {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in PACKAGE.rglob("*.py")
    }


def import_circle(known: dict[str, Path]) -> list[str]:
    """Modules that import each other in a circle, the first one repeated; empty: none do."""

    def target(name: str) -> str | None:
        return name if name in known else name.rpartition(".")[0] if "." in name else None

    edges = {
        module: {t for n in imports_of(path) if (t := target(n)) in known and t != module}
        for module, path in known.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in done:
            return []
        for other in sorted(edges[module]):
            if circle := visit(other, [*trail, module]):
                return circle
        done.add(module)
        return []

    return next((circle for module in sorted(known) if (circle := visit(module, []))), [])


def test_imports_point_down():
    files = [path for path in PACKAGE.rglob("*.py") if room_of(path) != "__init__"]
    assert upward_imports(files) == []


def test_an_upward_import_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    upward = tmp_path / "run" / "recipe.py"
    upward.parent.mkdir()
    upward.write_text("def f():\n    from tf_lbsgd.training import run_training\n")
    assert upward_imports([upward]) == ["run/recipe.py imports tf_lbsgd.training.run_training"]


def test_no_module_imports_itself_by_way_of_others():
    # The package's own face imports for type checkers what it hands on, and nothing imports it.
    known = {name: path for name, path in modules().items() if name != "tf_lbsgd"}
    assert import_circle(known) == []


def test_a_circle_is_seen(tmp_path):
    paths = {name: tmp_path / f"{name}.py" for name in "abc"}
    paths["a"].write_text("import b\n")
    paths["b"].write_text("if TYPE_CHECKING:\n    from c import x\n")
    paths["c"].write_text("def f():\n    from a import y\n")
    assert import_circle(paths) == ["a", "b", "c", "a"]


@pytest.mark.parametrize("folder", WITHOUT_TENSORFLOW)
def test_a_folder_without_tensorflow_imports_none(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        imported = {name.split(".")[0] for name in imports_of(path)}
        assert not imported & {"tensorflow", "keras"}, path


def test_the_top_level_stays_small():
    assert len(list(PACKAGE.glob("*.py"))) <= 17
