"""Functions of the user's: found, refused with a reason, and told apart by a digest."""

import sys

import pytest

from tf_lbsgd.run import catalogue
from tf_lbsgd.run.user_code import announce, digests_of, load_user_function


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of the user's into the working folder, and returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p] + [str(tmp_path)])
    name = f"user_module_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text("import shared_part\n\ndef tiny():\n    return 1\n")
    (tmp_path / "shared_part.py").write_text("import json\nVALUE = 1\n")
    (tmp_path / "unrelated.py").write_text("VALUE = 1\n")
    yield name
    for loaded in (name, "shared_part"):
        sys.modules.pop(loaded, None)


@pytest.mark.parametrize(
    ("name", "is_function"),
    [
        ("mine:tiny", True),
        ("package.module:function", True),
        ("folder:photos", False),  # a known scheme wins
        ("synthetic:8", False),
        ("resnet50", False),
        ("tfrecords:/data", False),
        ("mine:", False),
        (":tiny", False),
        ("a-b:tiny", False),
        ("mine:tiny:er", False),
    ],
)
def test_names_of_functions(name, is_function):
    assert catalogue.is_user_function(name) == is_function


def test_a_function_in_the_working_folder_is_found(module):
    assert load_user_function(f"{module}:tiny")() == 1


@pytest.mark.parametrize(
    ("source", "function", "said"),
    [
        ("def tiny(): pass\n", "big", "no such function"),
        ("tiny = 3\n", "tiny", "which is 3"),
        ("import a_module_that_is_nowhere\n", "tiny", "a_module_that_is_nowhere"),
        ("def tiny(:\n", "tiny", "SyntaxError"),
        ("raise RuntimeError('no licence')\n", "tiny", "RuntimeError: no licence"),
        ("raise SystemExit(0)\n", "tiny", "SystemExit: 0"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_the_reason(module, tmp_path, source, function, said):
    (tmp_path / f"{module}.py").write_text(source)
    with pytest.raises(ValueError, match=rf"(?s){module}.*Received: .*Expected: ") as refusal:
        load_user_function(f"{module}:{function}")
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def tiny(size): return size\n", "missing a required argument: 'size'"),
        ("def tiny(*, seed): return seed\n", "got an unexpected keyword argument"),
        ("def tiny(*, seed, dtype): raise SystemExit\n", "SystemExit(None)"),
        ("import sys\ndef tiny(*, seed, dtype): sys.exit(0)\n", "SystemExit(0)"),
    ],
)
def test_a_function_that_cannot_be_called_so_is_refused(module, tmp_path, source, said):
    """A run that ends with status 0 before its first step would count as done."""
    (tmp_path / f"{module}.py").write_text(source)
    function = load_user_function(f"{module}:tiny")
    with pytest.raises(ValueError, match=rf"{module}:tiny .*Received: .*Expected: ") as refusal:
        function(seed=1, dtype="float32")
    assert said in str(refusal.value)


def test_an_error_of_a_function_is_its_own(module, tmp_path):
    (tmp_path / f"{module}.py").write_text("def tiny(*, seed): raise TypeError('mine')\n")
    with pytest.raises(TypeError, match="mine"):
        load_user_function(f"{module}:tiny")(seed=1)


def test_a_module_that_is_nowhere_is_refused_with_the_known_names(module):
    with pytest.raises(ValueError, match=r"flder.*folder:PATH"):
        load_user_function("flder:photos")
    with pytest.raises(ValueError, match="no such module"):
        digests_of(["flder:photos"])


@pytest.mark.parametrize("changed", ["module", "neighbour"])
def test_the_digest_sees_the_module_and_its_neighbours(module, tmp_path, changed):
    name = f"{module}:tiny"
    before = digests_of([name])
    (tmp_path / "unrelated.py").write_text("VALUE = 2\n")
    assert digests_of([name]) == before
    file = tmp_path / ("shared_part.py" if changed == "neighbour" else f"{module}.py")
    file.write_text(file.read_text() + "\n# another line\n")
    assert digests_of([name]) != before


@pytest.mark.parametrize(
    "line",
    [
        "from package import part",
        "from package.part import x",
        "import package.part",
        "from .part import x",
    ],
)
def test_the_digest_follows_every_form_of_import(tmp_path, monkeypatch, line):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "part.py").write_text("from package import deeper\nx = 1\n")
    (package / "deeper.py").write_text("y = 1\n")
    (package / "model.py").write_text(f"{line}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = digests_of(["package.model:tiny"])
    (package / "deeper.py").write_text("y = 2\n")
    assert digests_of(["package.model:tiny"]) != before
    sys.modules.pop("package", None)


def test_whose_code_runs_is_said(module, tmp_path, capsys):
    announce([f"{module}:tiny"])
    assert f"{module}:tiny in {tmp_path / module}.py" in capsys.readouterr().out
