"""Evaluates the average of the weights, and trains on with the weights."""

from typing import Any

import keras


class WeightAveraging(keras.callbacks.Callback):
    """Puts the optimizer's averages in the place of the weights for the time of an evaluation.

    The weights come back to the last bit, so that training does not depend on when it evaluates.
    (`keras.callbacks.SwapEMAWeights` swaps by adding and subtracting, which rounds.) Batch-norm
    statistics are not averaged: they are those of the weights that train.

    Needs an optimizer with averages, `MomentumSGD` or `LARS` with an ema_momentum > 0; also within
    a `LossScaleOptimizer`. Every worker must have this callback.
    """

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Puts the averages in."""
        optimizer = self.model.optimizer
        averages = getattr(optimizer, "inner_optimizer", optimizer).averages
        self._weights = [weight.numpy() for weight in self.model.trainable_variables]
        for weight, average in zip(self.model.trainable_variables, averages, strict=True):
            weight.assign(average.numpy())

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Puts the weights back."""
        for weight, value in zip(self.model.trainable_variables, self._weights, strict=True):
            weight.assign(value)
        del self._weights
