"""Compares a run with its own past.

The run folder keeps what the run computes with: its data, code, versions and options. When the run
continues, changed data are refused unless the user accepts them. Changed code and versions are
accepted with a warning. Every change is recorded with the step from which on it holds.
"""

import dataclasses
import functools
from collections.abc import Mapping

from tf_lbsgd.input_pipeline import file_snapshot
from tf_lbsgd.input_pipeline.file_snapshot import Files, FileSnapshot
from tf_lbsgd.run.files import check_object
from tf_lbsgd.run.folder import RunFolder

NUM_TRAIN_EXAMPLES = "training images"


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Compares what a run computes with now and before.

    Attributes:
        run_folder: Folder of the run, which holds the past.
        facts: What the run computes with now, by name.
        files: Files of the data, by the name of the fact that is their fingerprint.
        versions: Names of the facts that are versions of packages.
    """

    run_folder: RunFolder
    facts: Mapping[str, str]
    files: Mapping[str, Files]
    versions: tuple[str, ...]

    @functools.cached_property
    def before(self) -> dict[str, str]:
        """Facts that were recorded last. Empty if there are none."""
        history = self.run_folder.read_facts()
        facts = history[-1]["facts"] if history else {}
        kinds = dict.fromkeys([*facts, NUM_TRAIN_EXAMPLES], (str,)) if facts else {}
        return check_object(facts, kinds, "facts.json")

    @functools.cached_property
    def changed_data(self) -> tuple[str, ...]:
        """What has changed in the data, in sentences.

        There is one for the training data and one for the validation data, if they have changed. It
        looks at every file. See `file_snapshot` for the time that takes and for changes that are
        not seen.
        """
        changes = {name: self._change_of(name) for name in self.files}
        return tuple(f"The {name}: {change}." for name, change in changes.items() if change)

    @property
    def num_train_examples_before(self) -> int:
        """Number of training images that was recorded last."""
        return int(self.before[NUM_TRAIN_EXAMPLES])

    def record(self, step: int) -> list[str]:
        """Records what the run computes with from now on.

        Call it when `changed_data` is empty or accepted.

        Args:
            step: Number of steps that the run has done so far.

        Returns:
            What the user should know: a sentence for each change.
        """
        sentences = [*self._notes(step), *(f"Warning: {text}" for text in self._warnings(step))]
        if self.facts != self.before or self.changed_data:
            self.run_folder.append_facts(self.facts, step, self.changed_data)
        if self._snapshots != self._kept:
            snapshots = {name: snapshot.to_json() for name, snapshot in self._snapshots.items()}
            self.run_folder.write_data_files(snapshots)
        return sentences

    @functools.cached_property
    def _kept(self) -> dict[str, FileSnapshot]:
        kept = self.run_folder.read_data_files()
        return {name: FileSnapshot.from_json(value) for name, value in kept.items()}

    @functools.cached_property
    def _snapshots(self) -> dict[str, FileSnapshot]:
        return {
            name: file_snapshot.take_snapshot(files, kept=self._kept.get(name))
            for name, files in self.files.items()
        }

    def _change_of(self, name: str) -> str:
        """Returns in words how data have changed."""
        if self.before.get(name, self.facts[name]) != self.facts[name]:
            return "other files, or files of other names or sizes"
        if not self.before or name not in self._kept:
            return ""
        kept, now = self._kept[name], self._snapshots[name]
        if kept.sizes != now.sizes:
            return "files of other sizes"
        files = file_snapshot.sampled(self.files[name])
        pairs = zip(files, kept.samples, now.samples, strict=False)
        changed = [str(file) for file, one, other in pairs if one != other]
        number = f"{len(changed)} of {len(files)} sampled files"
        return f"other contents in {number}, such as {changed[0]}" if changed else ""

    def _notes(self, step: int) -> list[str]:
        if not self.before:
            text = (
                "Note: this run was begun by a version that recorded no data, code and versions. "
                f"They are recorded from step {step} on."
            )
            return [text] if step else []
        touched = [name for name, kept in self._kept.items() if self._snapshots.get(name) != kept]
        return [
            f"Note: files of the {name} have other times than before. The contents of the sampled "
            "files are the same."
            for name in touched
            if not self.changed_data
        ]

    def _warnings(self, step: int) -> list[str]:
        onward = f"The run goes on from step {step} with that, which facts.json records."
        changed = {n: (self.before[n], f) for n, f in self.facts.items() if n in self.before}
        changed = {name: (old, new) for name, (old, new) in changed.items() if old != new}
        return [
            *(f"the data have changed. {text} {onward}" for text in self.changed_data),
            *(f"the {name} has changed. {onward}" for name in changed if name.startswith("code ")),
            *(
                f"the version of {name} has changed from {old} to {new}. {onward}"
                for name, (old, new) in changed.items()
                if name in self.versions
            ),
        ]
