"""Trains as in Keras' multi-worker tutorial.

A user's own program in which one line was changed.

Arguments: model ("functional" or "subclassed"), micro_batch_size, num_images.
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf

import tf_lbsgd as lbsgd

arguments = json.loads(sys.argv[2])


class Subclassed(lbsgd.MultiWorkerTrainer, keras.Model):
    def __init__(self):
        super().__init__()
        self.convolution = keras.layers.Conv2D(8, 3, activation="relu")
        self.normalization = keras.layers.BatchNormalization()
        self.dropout = keras.layers.Dropout(0.2)
        self.classifier = keras.layers.Dense(10, kernel_regularizer=keras.regularizers.L2(1e-3))

    def call(self, images, training=False):
        x = self.normalization(self.convolution(images), training=training)
        x = keras.ops.mean(x, axis=(1, 2))
        return self.classifier(self.dropout(x, training=training))


def functional_model():
    images = keras.Input((12, 12, 1))
    x = keras.layers.Conv2D(8, 3, activation="relu")(images)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.2)(x)
    logits = keras.layers.Dense(10, kernel_regularizer=keras.regularizers.L2(1e-3))(x)
    return lbsgd.DataParallelModel(images, logits)  # the changed line: was keras.Model


class EndOfEpoch(keras.callbacks.Callback):
    """What a stock callback sees."""

    def __init__(self):
        super().__init__()
        self.logs = []

    def on_epoch_end(self, epoch, logs=None):
        self.logs.append({name: float(value) for name, value in logs.items()})


strategy = lbsgd.create_strategy()
random = np.random.default_rng(0)
labels = random.integers(0, 10, arguments["num_images"])
images = random.normal(labels[:, None, None, None] / 5.0, 1.0, (len(labels), 12, 12, 1))
dataset = tf.data.Dataset.from_tensor_slices((images.astype("float32"), labels))
train = dataset.shuffle(1000, seed=1).batch(32)
validation = dataset.batch(50)

with strategy.scope():
    keras.utils.set_random_seed(1)
    model = Subclassed() if arguments["model"] == "subclassed" else functional_model()
    model.compile(
        optimizer=keras.optimizers.SGD(0.05, momentum=0.9, clipnorm=5.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(3)],
        micro_batch_size=arguments["micro_batch_size"],
    )

end_of_epoch = EndOfEpoch()
model.fit(
    train,
    epochs=3,
    validation_data=validation,
    callbacks=[
        end_of_epoch,
        keras.callbacks.EarlyStopping(patience=10),
        keras.callbacks.ReduceLROnPlateau(patience=10),
    ],
    verbose=2,
)
evaluation = model.evaluate(validation, return_dict=True, verbose=0)
predictions = model.predict(validation, verbose=0)

result = {
    "epochs": end_of_epoch.logs,
    "evaluation": {name: float(value) for name, value in evaluation.items()},
    "predictions": predictions.tolist(),
    "weights": [np.array(v).tolist() for v in model.variables if "seed" not in v.path],
}
with open(sys.argv[1], "w") as file:
    json.dump(result, file)
