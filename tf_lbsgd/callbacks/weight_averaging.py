"""Evaluates a model with the average of its weights."""

from typing import Any

import keras


class WeightAveraging(keras.callbacks.Callback):
    """Replaces the weights by their averages during an evaluation.

    The weights are restored to the last bit, so evaluations do not affect training.
    `keras.callbacks.SwapEMAWeights` swaps by addition and subtraction, which rounds. The running
    statistics of batch normalization are not averaged. They stay those of the trained weights.

    The optimizer must keep averages. `MomentumSGD` and `LARS` do so with an ema_momentum > 0, also
    within a `LossScaleOptimizer`. Every worker needs this callback.
    """

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Replaces the weights by their averages."""
        optimizer = self.model.optimizer
        averages = getattr(optimizer, "inner_optimizer", optimizer).averages
        self._weights = [weight.numpy() for weight in self.model.trainable_variables]
        for weight, average in zip(self.model.trainable_variables, averages, strict=True):
            weight.assign(average.numpy())

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Restores the weights."""
        for weight, value in zip(self.model.trainable_variables, self._weights, strict=True):
            weight.assign(value)
        del self._weights
