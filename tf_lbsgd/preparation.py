"""Prepares a run and checks it before it starts.

The data, the plan, the replicas and the run folder are checked against each other. Then the workers
check that they all are about to do the same.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tf_lbsgd import checkpoints, distribution, input_pipeline
from tf_lbsgd.models.building import num_values
from tf_lbsgd.provenance import NUM_TRAIN_EXAMPLES, Provenance
from tf_lbsgd.run import catalogue, user_code
from tf_lbsgd.run.fields import refusal
from tf_lbsgd.run.files import digest_of_files, step_files
from tf_lbsgd.run.folder import ImagesOfRun, RunFolder
from tf_lbsgd.run.options import RunOptions
from tf_lbsgd.run.plan import Plan
from tf_lbsgd.run.recipe import Recipe
from tf_lbsgd.workers import lease, meeting
from tf_lbsgd.workers.cluster import Cluster
from tf_lbsgd.workers.exits import StartupError
from tf_lbsgd.workers.lease import Attempt
from tf_lbsgd.workers.messages import Verdict

_TRAINING_DATA, _VALIDATION_DATA = "training data", "validation data"
_PACKAGES = ("tensorflow", "keras", "numpy")
# Options that may differ between workers, since each concerns only its own worker.
_OWN_OF_A_WORKER = {"data_dir", "initial_weights", "profile_steps", "startup_timeout_secs"}


@dataclasses.dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to start.

    Its parts were checked against each other. No step has run, and nothing was written.

    Attributes:
        plan: The step arithmetic.
        cluster: The workers. This process is one of them.
        train: Training images.
        validation: Validation images.
        run_folder: Folder of the run. It exists only if the run was started before.
        options: Where and how fast to run.
        attempt_before: Number of the newest attempt when the run folder was checked.
    """

    plan: Plan
    cluster: Cluster
    train: input_pipeline.Source
    validation: input_pipeline.Source
    run_folder: RunFolder
    options: RunOptions
    attempt_before: int = 0

    @property
    def augmentation(self) -> str:
        """Name of the augmentation that the run uses, see `augmentation_of`."""
        return augmentation_of(self.plan.recipe, self.train)

    @functools.cached_property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint, see `checkpoint_bytes`."""
        return checkpoint_bytes(self.plan.recipe, self.train)

    def describe(self) -> str:
        """Returns the plan and the data, as a table."""
        data = describe_data(self.plan.recipe, self.train, self.checkpoint_bytes)
        return self.plan.describe(data)

    @functools.cached_property
    def facts(self) -> dict[str, str]:
        """Facts of this worker, see `facts_to_agree_on`."""
        return facts_to_agree_on(self)

    @functools.cached_property
    def provenance(self) -> Provenance:
        """Compares the run with its own past."""
        return Provenance(
            self.run_folder,
            facts={**self.facts, NUM_TRAIN_EXAMPLES: str(self.train.num_examples)},
            files={
                _TRAINING_DATA: self.train.data_files(),
                _VALIDATION_DATA: self.validation.data_files(),
            },
            versions=(*_PACKAGES, "Python"),
        )

    def step_to_continue_from(self) -> int | None:
        """Returns where a run with other data continues.

        It is the step of the newest complete checkpoint at the end of an epoch, or 0 if no epoch is
        recorded. It is None if there is no such checkpoint, or if the other data make epochs of
        another number of steps.
        """
        before = self.provenance.num_train_examples_before
        plan_before = dataclasses.replace(self.plan, num_train_examples=before)
        if [p.end_step for p in plan_before.phases] != [p.end_step for p in self.plan.phases]:
            return None
        steps = checkpoints.complete_steps(self.run_folder.checkpoints)
        at_end_of_epoch = (step for step in steps if self.plan.step_in_epoch(step) == 0)
        return next(at_end_of_epoch, None if self.run_folder.read_metrics() else 0)


def prepare_run(
    recipe: Recipe,
    cluster: Cluster,
    run_dir: str | os.PathLike[str],
    options: RunOptions | None = None,
) -> PreparedRun:
    """Opens the data and checks a run, without starting it.

    The checks are that the recipe, the workers, the data and the run folder fit together.

    Args:
        recipe: What to compute.
        cluster: The workers. Each of them has as many replicas as this process.
        run_dir: The run folder, on a file system that all workers share.
        options: Where and how fast to run.

    Raises:
        ValueError: Something does not fit. The message says what was received, what was expected
            and what to do.
    """
    options = options or RunOptions()
    run_folder = RunFolder(run_dir)
    attempt_before = lease.newest_attempt(run_folder.path)
    run_folder.check(recipe)
    has_lost = has_lost_checkpoints(run_folder)  # reads the newest checkpoint, so only once
    if has_lost and not options.restart_from_scratch:
        raise lost_checkpoints(run_folder)
    if options.cpu_replicas > 1:
        distribution.split_cpu(options.cpu_replicas)
    train = open_split(recipe, options, "train")
    validation = open_split(recipe, options, "validation")
    if options.dirty_data == "tolerant":
        log = run_folder.replacements_log(cluster.task_index)
        train = train.tolerant(log, options.max_replaced_images)
    for name in catalogue.user_functions(recipe.model):
        user_code.load_user_function(name)
    plan = Plan(
        recipe,
        num_train_examples=train.num_examples,
        num_replicas=cluster.num_workers * distribution.replicas_per_worker(),
    )
    check_profiled_steps(plan, options)
    prepared = PreparedRun(plan, cluster, train, validation, run_folder, options, attempt_before)
    if cluster.is_chief:  # only the chief writes the run folder
        check_disk_space(prepared)
        if not has_lost:  # a run from scratch may take other data
            check_data(prepared)
    return prepared


def check_profiled_steps(plan: Plan, options: RunOptions) -> None:
    """Checks that the run has the steps to profile.

    Raises:
        ValueError: The run ends before the last of them.
    """
    if options.profiled_steps and options.profiled_steps[1] > plan.total_steps:
        raise refusal(
            "The run has not so many steps.",
            f"profile_steps={options.profile_steps}",
            f"FIRST:LAST with a LAST of at most {plan.total_steps}",
        )


def begin_attempt(prepared: PreparedRun) -> Attempt:
    """Begins an attempt to train, as its chief.

    From then on this process alone may write the run folder. If this chief cannot begin, it tells
    the other workers.

    Raises:
        StartupError: Another attempt runs. The message says which process that is.
    """
    run_folder = prepared.run_folder
    with _telling_other_workers(prepared):
        attempt = Attempt.begin(run_folder.path)
    run_folder.attempt, run_folder.staging = attempt.number, attempt.staging
    run_folder.remove_temporary_files()
    return attempt


def check_again(prepared: PreparedRun, attempt: Attempt) -> PreparedRun:
    """Checks a run whose folder another attempt may have changed.

    It does what `prepare_run` does, if there was another attempt since then.

    Returns:
        The run. If it was checked, it has forgotten what it read from the folder before.

    Raises:
        ValueError: The run no longer fits its folder. The other workers were told.
    """
    if not attempt.was_awaited and attempt.number == prepared.attempt_before + 1:
        return prepared
    prepared = dataclasses.replace(prepared)
    run_folder = prepared.run_folder
    with _telling_other_workers(prepared):
        run_folder.check(prepared.plan.recipe)
        if not has_lost_checkpoints(run_folder):
            check_data(prepared)
        elif not prepared.options.restart_from_scratch:
            raise lost_checkpoints(run_folder)
    return prepared


@contextlib.contextmanager
def _telling_other_workers(prepared: PreparedRun) -> Iterator[None]:
    """Tells the other workers why this one cannot start."""
    try:
        yield
    except (StartupError, ValueError) as error:
        is_final, folder = isinstance(error, ValueError), prepared.run_folder.path
        meeting.refuse(prepared.cluster, str(error), folder, is_final=is_final)
        raise


def has_lost_checkpoints(run_folder: RunFolder) -> bool:
    """Returns whether a run has recorded epochs but no checkpoint.

    Such a run would start again at step 0 and drop the recorded epochs. A complete run has its
    result and needs no checkpoint.

    Raises:
        ValueError: `result.json` or `metrics.jsonl` is not what a run writes.
    """
    if run_folder.read_result() is not None or not run_folder.read_metrics():
        return False
    return next(checkpoints.complete_steps(run_folder.checkpoints), None) is None


def lost_checkpoints(run_folder: RunFolder) -> ValueError:
    """Returns the error of a run that lost its checkpoints."""
    return ValueError(
        "The run cannot continue. Received: recorded epochs, but no complete checkpoint in "
        f"{run_folder.checkpoints} Expected: a checkpoint, such as a copy of one; or start with "
        "--restart_from_scratch, which begins again at step 0 and moves the recorded epochs "
        "aside; or choose another --run_dir."
    )


def check_data(prepared: PreparedRun) -> None:
    """Checks that the data of a run have not changed.

    Raises:
        ValueError: The data have changed, and the user does not accept that. Or the run cannot
            continue with them. The message names what has changed.
    """
    run_folder = prepared.run_folder
    is_complete = run_folder.read_result() is not None
    if is_complete or not (changed := prepared.provenance.changed_data):
        return
    received = "\n  ".join(("Received:", *changed)) + "\n"
    if not prepared.options.accept_changed_data:
        raise ValueError(
            f"The data have changed since this run began. {received}Expected: the data as they "
            "were; or start with --accept_changed_data, which goes on with the new data and runs "
            "an interrupted epoch again from its start; or choose another --run_dir."
        )
    if prepared.step_to_continue_from() is None:
        raise ValueError(
            f"The run cannot go on with the changed data. {received}  "
            f"{prepared.provenance.num_train_examples_before} training images before, "
            f"{prepared.train.num_examples} now\nExpected: a number of images that makes the same "
            f"number of steps in an epoch, and a complete checkpoint of the end of an epoch in "
            f"{run_folder.checkpoints}; or choose another --run_dir."
        )


def check_disk_space(prepared: PreparedRun) -> None:
    """Checks that the disk can hold two checkpoints.

    One checkpoint is kept while the next one is written.

    Raises:
        ValueError: The disk cannot. The message says how much is free and how much is needed.
    """
    needed = prepared.checkpoint_bytes
    folder = prepared.run_folder.checkpoints
    missing = max(1, 2 - len(step_files(folder, ".npz")))
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < missing * needed:
        raise ValueError(
            f"The disk has no space for checkpoints. Received: {free / 2**20:,.0f} MiB free under "
            f"{existing} Expected: {missing * needed / 2**20:,.0f} MiB, for {missing} of "
            f"{needed / 2**20:,.0f} MiB; make space, or choose another --run_dir."
        )


def describe_data(
    recipe: Recipe, source: input_pipeline.Source, num_bytes: int
) -> list[tuple[str, str]]:
    """Returns what `plan` and `train` say about the data.

    Args:
        recipe: Names the augmentation.
        source: Training images.
        num_bytes: Size of a checkpoint.

    Returns:
        Rows for `Plan.describe`.
    """
    height, width, channels = source.image_shape
    kind = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    pixels = f"{height:,} x {width:,} pixels, {kind}"
    augmentation = augmentation_of(recipe, source)
    return [
        ("images", f"{pixels}, {source.num_classes:,} classes, augmentation {augmentation}"),
        ("checkpoint", f"{num_bytes / 1e6:,.1f} MB"),
    ]


def augmentation_of(recipe: Recipe, source: input_pipeline.Source) -> str:
    """Returns the name of the augmentation that a run uses.

    It is the recipe's. If that is "auto", it is the default of the data set.
    """
    return source.default_augmentation if recipe.augmentation == "auto" else recipe.augmentation


def checkpoint_bytes(recipe: Recipe, source: input_pipeline.Source) -> int:
    """Returns the size of a checkpoint, in bytes.

    A checkpoint holds the weights, the statistics and the momentum, and with `ema_momentum` the
    averages, all in float32.
    """
    copies = 3 if recipe.ema_momentum else 2
    return 4 * copies * num_values(recipe, source.num_classes, source.image_shape)


def agree_with_other_workers(
    prepared: PreparedRun, attempt: Attempt | None = None
) -> Attempt | None:
    """Waits for all workers and checks that they agree.

    It returns when all workers have met and are about to do the same. It prints their warnings.

    Args:
        prepared: The run.
        attempt: The chief's attempt. None on the other workers, and if nothing is to be trained.

    Returns:
        The chief's attempt, in which this worker takes part. None if the chief has none.

    Raises:
        MeetingError, StartupError: As in `meeting.Meeting.meet`.
    """
    cluster, run_folder = prepared.cluster, prepared.run_folder
    if not cluster.is_multi_worker:
        return attempt
    verdict = agree_on(prepared.facts, cluster, run_folder, prepared.options, attempt)
    if cluster.is_chief or not verdict.attempt:
        return attempt
    return Attempt(run_folder.path, verdict.attempt, verdict.nonce)


def agree_on(
    facts: dict[str, str],
    cluster: Cluster,
    run_folder: RunFolder,
    options: RunOptions,
    attempt: Attempt | None = None,
) -> Verdict:
    """Waits for all workers and checks that their facts agree.

    It prints their warnings.

    Args:
        facts: What must be the same on every worker, by name.
        cluster: The workers, at least two.
        run_folder: Folder of the run, which all workers must see.
        options: How long to wait.
        attempt: The chief's attempt, if it writes the run folder.

    Returns:
        The verdict, which has the number and nonce of the chief's attempt.

    Raises:
        MeetingError, StartupError: As in `meeting.Meeting.meet`.
    """
    part = meeting.Meeting(
        cluster=cluster,
        facts=facts,
        shared_folder=run_folder.path,
        timeout_secs=options.startup_timeout_secs,
        attempt=attempt.number if attempt else 0,
        nonce=attempt.nonce if attempt else "",
    )
    verdict = part.meet()
    for warning in verdict.warnings:
        print(f"Warning: {warning}", flush=True)
    return verdict


def facts_to_agree_on(prepared: PreparedRun) -> dict[str, str]:
    """Returns what must be the same on every worker.

    The values are strings, by name.
    """
    options = dataclasses.asdict(prepared.options)
    recipe = prepared.plan.recipe
    facts = {f"--{name}": value for name, value in recipe.to_json().items()}
    facts |= {f"--{name}": options[name] for name in options.keys() - _OWN_OF_A_WORKER}
    facts |= {
        _TRAINING_DATA: prepared.train.fingerprint(),
        _VALIDATION_DATA: prepared.validation.fingerprint(),
    }
    return software_facts(recipe) | {name: str(value) for name, value in facts.items()}


def software_facts(recipe: Recipe) -> dict[str, str]:
    """Returns versions, code and replicas of this worker.

    They must be the same on every worker. The values are strings, by name.
    """
    digests = user_code.digests_of(catalogue.user_functions(recipe.model, recipe.dataset))
    facts = {f"code of {name}": digest for name, digest in digests.items()}
    facts |= {package: importlib.metadata.version(package) for package in _PACKAGES}
    return facts | {
        "Python": platform.python_version(),
        "code of tf_lbsgd": _digest_of_code(),
        "replicas per worker": str(distribution.replicas_per_worker()),
    }


def _digest_of_code() -> str:
    """Returns the SHA-256 of this package's files."""
    folder = Path(__file__).parent
    return digest_of_files(folder, folder.rglob("*.py"))


def images_of_run(run_folder: RunFolder, options: RunOptions) -> ImagesOfRun:
    """Returns what the images of a run are.

    The data are needed only for a run of an older version, which did not record it.
    """
    recorded = run_folder.read_images()
    if recorded is not None:
        return recorded
    source = open_split(run_folder.read_recipe(), options, "validation")
    return ImagesOfRun(source.class_names, source.image_shape)


def open_split(
    recipe: Recipe, options: RunOptions, split: Literal["train", "validation"]
) -> input_pipeline.Source:
    """Opens the training or validation images of a recipe."""
    return input_pipeline.open_source(
        recipe.dataset,
        data_dir=options.data_dir,
        image_size=recipe.image_size,
        split=split,
        shuffle_buffer=recipe.shuffle_buffer,
        keep_in_memory=options.keep_in_memory,
    )
