"""Step, epoch and phase at every step of a run whose batch grows."""

from tf_lbsgd.callbacks import TrainingPosition
from tf_lbsgd.run.plan import Plan
from tf_lbsgd.run.recipe import Recipe

RECIPE = Recipe(
    dataset="synthetic:8x8x1",
    global_batch_size=32,
    micro_batch_size=8,
    epochs=4,
    batch_growth_epochs=(2,),
    batch_growth_factor=2,
)


def test_counts_steps_of_epochs_of_several_lengths():
    position = TrainingPosition(Plan(RECIPE, 100))  # 3 steps an epoch, then 1
    seen = []
    for batch in range(9):
        seen.append((position.epoch, position.step_in_epoch, position.steps_per_epoch))
        position.on_train_batch_end(batch)
    assert seen == [
        (0, 0, 3), (0, 1, 3), (0, 2, 3), (1, 0, 3), (1, 1, 3), (1, 2, 3), (2, 0, 1), (3, 0, 1),
        (4, 0, 1),
    ]  # fmt: skip


def test_a_position_set_by_a_checkpoint_knows_its_phase():
    position = TrainingPosition(Plan(RECIPE, 100))
    position.step = 7
    assert position.phase.global_batch_size == 64
    assert (position.epoch, position.step_in_epoch) == (3, 0)
