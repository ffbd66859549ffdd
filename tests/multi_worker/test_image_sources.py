"""Two workers train on the same photographs, stored in three ways: step by step the same."""

import pathlib

import pytest
from commands import epoch_metrics, run_tool, train

from tf_lbsgd.step import audit

PHOTOS = pathlib.Path(__file__).parents[1] / "data/photos"
MODELS = {
    "resnet8": ["--image_size=32", "--global_batch_size=12", "--micro_batch_size=3"],
    "resnet50": ["--image_size=224", "--global_batch_size=8", "--micro_batch_size=2"],
}


@pytest.mark.long
@pytest.mark.parametrize("model", ["resnet8", "resnet50"])
def test_losses_do_not_depend_on_how_the_images_are_stored(model, tmp_path):
    shards = tmp_path / "shards"
    for form in ("tfrecord", "arrayrecord"):
        arguments = (f"--input={PHOTOS}", f"--output={shards}", f"--format={form}")
        made = run_tool("make_shards", *arguments)
        assert made.returncode == 0, made.stderr
    runs = {}
    for dataset in (f"folder:{PHOTOS}", f"tfrecord:{shards}", f"arrayrecord:{shards}"):
        form = dataset.split(":")[0]
        result = train(
            tmp_path / form,
            2,
            f"--dataset={dataset}",
            f"--model={model}",
            *MODELS[model],
            "--epochs=1",
            "--base_learning_rate=0.05",
            "--deterministic",
            "--audit_data",
        )
        losses = [m["train_loss"] for m in epoch_metrics(tmp_path / form)]
        order = {s: i.tolist() for s, i in audit.read_audit(tmp_path / form / "audit").items()}
        runs[form] = (result["weights_sha256"], losses, order)
    folder, tfrecord, arrayrecord = runs.values()
    assert folder == tfrecord == arrayrecord
