"""Makes pages of the docs site from other files.

MkDocs calls the functions (see `hooks` in mkdocs.yml). README.md becomes the first page, and the
page of errors is made from the code, so that none is missing. A link to a file that is not a page
becomes its path, since the site does not have that file.
"""

import ast
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tf_lbsgd"

_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
_RAISED = {
    "refusal", "ValueError", "StartupError", "WorkerLostError", "NonFiniteError", "LeaseLostError",
    "MeetingError", "ClusterError", "UnreadableImageError", "RuntimeError",
}  # fmt: skip
_SHORTEST = 12  # characters before "Received": what is shorter names no cause


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are made from other files."""
    readme = re.sub(r"\]\(docs/", "](", (ROOT / "README.md").read_text())
    files.append(File.generated(config, "index.md", content=readme))
    files.append(File.generated(config, "errors.md", content=errors_page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Replaces links to files that the site lacks."""
    folder = Path(page.file.src_uri).parent

    def replace(found: re.Match[str]) -> str:
        text, target = found[1], found[2].partition("#")[0]
        if not target or "://" in target or _is_on_site(folder / target, files):
            return found[0]
        name = target.replace("../", "")
        return f"`{name}`" if text.strip("`") in name else f"{text} (`{name}`)"

    return _LINK.sub(replace, markdown)


def _is_on_site(path: Path, files: Files) -> bool:
    return files.get_file_from_path(posixpath.normpath(path)) is not None


def errors_page() -> str:
    """Returns the page of all error messages."""
    lines = [
        "# Errors",
        "",
        "A message says what is wrong, then what was received, and then what was expected, which "
        "is the cure. Here are all of them, by the part of the package that they come from. What "
        "depends on the case is written as `…`. Search for the first words of yours.",
        "",
        "Exit statuses are explained in [running for days](operations.md#exit-statuses).",
    ]
    for path in sorted(PACKAGE.rglob("*.py")):
        messages = sorted(set(messages_of(path)))
        if messages:
            tree = ast.parse(path.read_text())
            purpose = (ast.get_docstring(tree) or "").splitlines()[0]
            lines += ["", f"## {path.relative_to(PACKAGE).with_suffix('')}", "", purpose, ""]
            lines += [f"- {message}" for message in messages]
    return "\n".join(lines) + "\n"


def messages_of(path: Path) -> Iterator[str]:
    """Yields the messages of the errors that a file makes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else _name_of(node.func)
        if name not in _RAISED or not node.args:
            continue
        parts = [_text_of(argument) for argument in node.args]
        if name == "refusal" and len(parts) == 3:
            parts = [f"{parts[0]} Received: {parts[1]} Expected: {parts[2]}"]
        message = " ".join(parts[0].split()).replace("<", "&lt;").replace("*", r"\*")
        if len(message.partition("Received")[0]) >= _SHORTEST and message[0] != "…":
            yield re.sub(r"(?<![`\w])(--[a-z][a-z_0-9]*)", r"`\1`", message)


def _name_of(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _text_of(node: ast.expr) -> str:
    """Returns a text, with … for what is not constant."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text_of(value) for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text_of(node.left) + _text_of(node.right)
    return "…"
