"""Imports inside the package point down only."""

import ast
from pathlib import Path

import tf_lbsgd

PACKAGE = Path(tf_lbsgd.__file__).parent

# From the top down; modules of one layer do not import each other.
LAYERS = (
    ("cli",),
    ("export", "checkup"),
    ("evaluation",),
    ("training", "supervision", "report"),
    ("audit", "preparation", "launcher"),
    ("trainer", "callbacks", "input_pipeline"),
    ("distribution", "optimizers", "schedules", "checkpoints", "models", "metrics"),
    ("step_record", "micro_batches", "gradient_noise"),
    ("layers", "run_folder", "plan", "watchdog"),
    ("preflight",),
    ("recipe", "cluster", "run_options", "stops", "failures", "network_namespace"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
STANDARD_LIBRARY_ONLY = (
    *("recipe", "plan", "cluster", "run_folder", "run_options", "stops", "watchdog"),
    *("failures", "network_namespace", "preflight"),
)


def imports_of(path: Path) -> set[str]:
    """Top-level names below tf_lbsgd that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("tf_lbsgd.")}
    return found


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def upward_imports(files: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in files
        for other in imports_of(path)
        if other != part_of(path) and LEVEL[other] <= LEVEL[part_of(path)]
    ]


def test_imports_point_down():
    files = [path for path in PACKAGE.rglob("*.py") if part_of(path) != "__init__"]
    assert upward_imports(files) == []


def test_an_upward_import_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    upward = tmp_path / "recipe.py"
    upward.write_text("def f():\n    from tf_lbsgd.training import run_training\n")
    assert upward_imports([upward]) == ["recipe.py imports training"]


def test_rules_do_not_need_tensorflow():
    for name in STANDARD_LIBRARY_ONLY:
        source = (PACKAGE / f"{name}.py").read_text()
        assert "tensorflow" not in {
            alias.name.split(".")[0]
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Import)
            for alias in node.names
        }


def test_only_the_trainer_touches_private_names_of_keras():
    for path in PACKAGE.rglob("*.py"):
        if part_of(path) != "trainer":
            assert "keras.src" not in path.read_text(), path
