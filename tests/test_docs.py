"""README and docs name only files, programs and flags that exist."""

import functools
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import run

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "BUILD.md", *(ROOT / "docs").glob("**/*.md")])
BINARIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]

LINK = re.compile(r"\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(?:bash|sh|yaml)?\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:python3? -m tf_lbsgd\.cli\.|lbsgd-)(\w+)(.*)")


def anchors(page: Path) -> set[str]:
    """Names of the headings of a page, as in its links."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text()):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Names of our binaries and their arguments, in the blocks of a page."""
    for block in BLOCK.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            if found := COMMAND.search(line):
                words = shlex.split(found[2], comments=True)
                end = next((i for i, w in enumerate(words) if w in ("|", ";", "&&", "&")), None)
                yield found[1], words[:end]


@functools.cache
def known_flags(binary: str) -> set[str]:
    """Flags that the help of a binary lists, and those of absl."""
    listed = re.findall(r"^ +--(?:\[no\])?(\w+):", run(binary, "--help").stdout, re.MULTILINE)
    assert listed, binary
    return {*listed, "flagfile", "help"}


def parts(binary: str, arguments: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Divides a command into binaries and their own arguments: `launch` starts another one."""
    if binary != "launch" or "--" not in arguments:
        yield binary, arguments
        return
    middle = arguments.index("--")
    own, rest = arguments[:middle], arguments[middle + 1 :]
    yield "launch", own
    if rest and rest[0].startswith("-"):  # else a command of the user
        started = [flag.partition("=")[2] for flag in own if flag.startswith("--binary=")]
        yield (*started, "train")[0], rest


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_name_binaries_and_flags_that_exist(page):
    for command, all_arguments in commands(page):
        assert f"lbsgd-{command}" in BINARIES, command
        for binary, arguments in parts(command, all_arguments):
            named = [a[2:].partition("=")[0] for a in arguments if a.startswith("--")]
            known = known_flags(binary)
            assert {
                name.removeprefix("no") if name not in known else name for name in named
            } <= known


def test_a_wrong_name_would_be_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\nlbsgd-launch --num_workers=2 -- --no_such=1 \\\n  --seed=2  # why\n```\n"
    )
    ((command, arguments),) = commands(page)
    assert list(parts(command, arguments)) == [
        ("launch", ["--num_workers=2"]),
        ("train", ["--no_such=1", "--seed=2"]),
    ]
    assert "no_such" not in known_flags("train")
    assert {"seed", "run_dir"} <= known_flags("train")


def test_the_plan_in_the_docs_is_what_the_command_prints():
    page = (ROOT / "docs" / "recipes.md").read_text()
    ((_, arguments), *_) = (
        (b, a) for b, a in commands(ROOT / "docs" / "recipes.md") if b == "plan"
    )
    assert f"```\n{run('plan', *arguments).stdout}```" in page
