"""What the writing callbacks of Keras do on workers other than the chief."""

from pathlib import Path

import keras
import pytest

from tf_lbsgd.step import quiet_callbacks


class OwnLog(keras.callbacks.CSVLogger):
    """A subclass of a user, with a path of its own below the file's name."""


@pytest.mark.parametrize(
    ("create", "attribute"),
    [
        (lambda p: keras.callbacks.ModelCheckpoint(f"{p}/{{epoch}}.keras"), "filepath"),
        (lambda p: keras.callbacks.BackupAndRestore(Path(p)), "backup_dir"),
        (lambda p: keras.callbacks.CSVLogger(f"{p}/log.csv"), "filename"),
        (lambda p: OwnLog(f"{p}/log.csv"), "filename"),
        (lambda p: keras.callbacks.TensorBoard(p), "log_dir"),
        (lambda p: keras.callbacks.TensorBoard(f"{p}/"), "log_dir"),
        (lambda p: keras.callbacks.TensorBoard("."), "log_dir"),
    ],
)
def test_all_paths_of_a_callback_move_and_come_back(create, attribute, tmp_path):
    callback = create("/somewhere/else")
    before = dict(vars(callback))
    with quiet_callbacks.write_elsewhere([callback], tmp_path):
        assert str(getattr(callback, attribute)).startswith(str(tmp_path))
        assert not [value for value in vars(callback).values() if "/somewhere" in str(value)]
    assert vars(callback) == before


def test_names_that_only_begin_alike_stay(tmp_path):
    callback = keras.callbacks.TensorBoard("epoch", update_freq="epoch")
    with quiet_callbacks.write_elsewhere([callback], tmp_path):
        assert callback.update_freq == "epoch"


def test_nothing_is_sent_and_nothing_else_is_touched(tmp_path):
    monitor = keras.callbacks.RemoteMonitor(root="http://127.0.0.1:9")
    early = keras.callbacks.EarlyStopping()
    own = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None)
    before = [dict(vars(c)) for c in (monitor, early, own)]
    with quiet_callbacks.write_elsewhere([monitor, early, own], tmp_path):
        monitor.on_epoch_end(0, {"loss": 1.0})  # would warn that no one answers
        assert [dict(vars(c)) for c in (early, own)] == before[1:]
    assert [dict(vars(c)) for c in (monitor, early, own)] == before


def test_paths_come_back_after_an_error(tmp_path):
    callback = keras.callbacks.CSVLogger("log.csv")
    with (
        pytest.raises(RuntimeError),
        quiet_callbacks.write_elsewhere([callback], tmp_path),
    ):
        raise RuntimeError
    assert callback.filename == "log.csv"


@pytest.mark.parametrize("form", ["none", "one", "nested", "list"])
def test_every_form_of_the_argument_is_a_list(form):
    callback = keras.callbacks.TerminateOnNaN()
    forms = {
        "none": None,
        "one": callback,
        "nested": [[callback]],
        "list": keras.callbacks.CallbackList([callback]),
    }
    expected = [] if form == "none" else [callback]
    assert quiet_callbacks.flatten(forms[form]) == expected
