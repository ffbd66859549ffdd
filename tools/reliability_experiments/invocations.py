"""Draws invocations of the binaries that are wrong."""

import dataclasses
import random
from collections.abc import Callable

from tf_lbsgd.run.fields import Rule, rule_of
from tf_lbsgd.run.options import LaunchOptions, RunOptions
from tf_lbsgd.run.recipe import Recipe

_RECIPE = (
    "--dataset=synthetic:8x8x1x10x80", "--model=resnet8", "--global_batch_size=32",
    "--micro_batch_size=8", "--epochs=1", "--decay_epochs=", "--warmup_epochs=0",
    "--augmentation=none",
)  # fmt: skip
_RUN = (*_RECIPE, "--run_dir=PLACE/run")
_VALID = {
    "train": _RUN,
    "doctor": _RUN,
    "launch": ("--", *_RUN),
    "plan": (*_RECIPE, "--num_train_examples=80"),
}
_SETTINGS = {
    "train": (Recipe, RunOptions), "doctor": (Recipe, RunOptions), "plan": (Recipe,),
    "launch": (LaunchOptions,),
}  # fmt: skip
_VALUES = (
    "", "x", "nan", "inf", "-inf", "-1", "-0.5", "1e400", "1e-400", "9" * 40, "-" + "9" * 40,
    "1.5", "0", "3,x", "[1]", "{}", "none", "\udcff", "½", "1 2", "--", "=", "9" * 5000, "\n",
)  # fmt: skip
_RUN_DIRS = (
    "PLACE/file", "PLACE/file/run", "PLACE/loop", "PLACE/loop/run", "PLACE/broken", "gs://b/run",
    "file:///x", "~nosuchuser/x", "PLACE/" + "x" * 300, "PLACE" + "/x" * 2100, "PLACE/\udcff",
    "/dev/null", "/proc/run", "PLACE/fifo", "", "PLACE/torn",
)  # fmt: skip
_DATASETS = (
    "imagenet", "folder:", "folder:PLACE/absent", "folder:PLACE/file", "folder:PLACE/loop",
    "folder:gs://b/x", "synthetic:", "synthetic:8x8", "synthetic:8x8x1x10x-80", "synthetic:axb",
    "synthetic:0x0x1x10x80", "synthetic:8x8x1x0x80", f"synthetic:8x8x1x10x{'9' * 30}",
    "tfrecord:PLACE/absent", "tfrecord:PLACE/file", "arrayrecord:PLACE/file", "tfds:", ":", "a:b",
    "tfds:nosuchdataset", "os:getcwd", "json:loads", "nosuchmodule:x", "a.b.c:d", "\udcff",
)  # fmt: skip
_MODELS = ("vgg16", "", "resnet", "resnet7", "nosuchmodule:x", ":", "os:nosuch", "json:decoder")
_TF_CONFIGS = (
    "{", "[]", "7", "null", '"x"', "{}", '{"cluster": {}}', '{"cluster": []}', "[" * 100_000,
    '{"cluster": {"worker": "a:1"}}', '{"cluster": {"worker": [1, 2]}}',
    '{"cluster": {"worker": ["a", "b"]}, "task": {"type": "worker", "index": 0}}',
    '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": -1}}',
    '{"cluster": {"worker": ["a:1", "b:2"]}, "task": []}',
    '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": [], "index": 0}}',
    '{"cluster": {"worker": ["a:1", "b:99999"]}, "task": {"type": "worker", "index": 0}}',
    '{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}',
    '{"cluster": {"evaluator": ["a:1"]}, "task": {"type": "evaluator", "index": 0}}',
)  # fmt: skip
_FLAGFILES = ("PLACE/absent", "PLACE", "PLACE/binary", "PLACE/loop", "gs://b/x", "PLACE/torn")


@dataclasses.dataclass
class Invocation:
    """A command that is wrong in one place.

    Attributes:
        binary: A module of `tf_lbsgd.cli`.
        arguments: Its arguments. PLACE stands for a folder.
        tf_config: Value of TF_CONFIG.
    """

    binary: str
    arguments: tuple[str, ...]
    tf_config: str = ""


def with_wrong_value(draw: random.Random) -> Invocation:
    """Returns an invocation with a value that its field refuses."""
    binary = draw.choice(list(_VALID))
    fields = [f for s in _SETTINGS[binary] for f in dataclasses.fields(s) if f.name != "checkpoint"]
    pairs = [(f.name, v) for f in fields for v in _VALUES if is_wrong(rule_of(f), f, v)]
    name = draw.choice(sorted({name for name, _ in pairs}))
    value = draw.choice([v for n, v in pairs if n == name])
    flag = (f"--{name}={value}",)
    if binary == "launch":
        return Invocation(binary, (*flag, *_VALID[binary]))
    return Invocation(binary, (*_VALID[binary], *flag))


def is_wrong(rule: Rule, field: dataclasses.Field, text: str) -> bool:
    """Returns whether a text is no value of a flag."""
    if rule.kind is str and not rule.choices:
        return False
    if rule.kind is bool:
        return text not in ("", "0")
    items = text.split(",") if rule.is_sequence and text else [] if rule.is_sequence else [text]
    try:
        values = tuple(map(rule.kind, items))
    except ValueError:
        return True
    return not rule.accepts(values if rule.is_sequence else values[0])


def with_wrong_text(draw: random.Random) -> Invocation:
    """Returns an invocation with a wrong text."""
    name, texts = draw.choice(
        (
            ("run_dir", _RUN_DIRS),
            ("dataset", _DATASETS),
            ("model", _MODELS),
            ("flagfile", _FLAGFILES),
        )
    )
    binary = draw.choice(("train", "launch", "doctor"))
    return Invocation(binary, (*_VALID[binary], f"--{name}={draw.choice(texts)}"))


def with_wrong_words(draw: random.Random) -> Invocation:
    """Returns an invocation with a wrong word or flag."""
    binary = draw.choice(list(_VALID))
    word = draw.choice(
        ("now", "--epoch=3", "--", "-x", "--batch_size=3", "--no", "---epochs=1", "--=3", "ü",
         "--noepochs", "--epochs", "--deterministic=maybe", "-", "''")
    )  # fmt: skip
    return Invocation(
        binary, (*_VALID[binary], word, *(["x"] if word in ("--", "--epochs") else []))
    )


def with_wrong_cluster(draw: random.Random) -> Invocation:
    """Returns an invocation with a TF_CONFIG that is none."""
    return Invocation("train", _VALID["train"], draw.choice(_TF_CONFIGS))


def of_wrong_run(draw: random.Random) -> Invocation:
    """Returns an invocation that looks at a wrong run."""
    place = draw.choice((*_RUN_DIRS, "PLACE", "PLACE/absent"))
    binary = draw.choice(("evaluate", "export", "report"))
    more = ("--output=PLACE/out.keras",) if binary == "export" else ()
    return Invocation(binary, (place,) if binary == "report" else (f"--run_dir={place}", *more))


KINDS: dict[str, Callable[[random.Random], Invocation]] = {
    "with a wrong value": with_wrong_value,
    "with a wrong folder, data set, model or flagfile": with_wrong_text,
    "with a wrong word": with_wrong_words,
    "with a wrong TF_CONFIG": with_wrong_cluster,
    "of a wrong run": of_wrong_run,
}
