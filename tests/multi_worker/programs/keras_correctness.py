"""Fits regularized models with our trainer or stock Keras.

Stock Keras runs without a strategy. Argument: is_stock.
"""

import json
import sys

import keras
import numpy as np


def upstream(model_class):
    """Returns the model and data of Keras' own test.

    One weight, of value 1, and equal samples.
    """
    inputs = keras.Input((1,))
    layer = keras.layers.Dense(
        1,
        use_bias=False,
        kernel_initializer=keras.initializers.Constant(1),
        kernel_regularizer=keras.regularizers.L1L2(l1=0.01, l2=0.01),
    )
    model = model_class(inputs, layer(inputs))
    model.compile(loss="mse", optimizer="sgd")
    return model, {"x": np.ones((12, 1)), "y": np.zeros((12, 1)), "batch_size": 12, "epochs": 1}


def weighted(model_class, **weights):
    """Returns a model of two regularized layers and data.

    Sample weights are not equal, and the last batch has 4 samples instead of 24.
    """
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    x = keras.layers.Dense(
        8,
        activation="tanh",
        kernel_regularizer=keras.regularizers.L1L2(l1=1e-3, l2=1e-2),
        bias_regularizer=keras.regularizers.L2(1e-2),
    )(inputs)
    outputs = keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(1e-2))(x)
    model = model_class(inputs, outputs)
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer=keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseCategoricalCrossentropy(from_logits=True)],
    )
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 100)
    features = random.normal(labels[:, None], 1.0, (100, 5)).astype("float32")
    arguments = {"x": features, "y": labels, "batch_size": 24, "epochs": 3, "shuffle": False}
    return model, {**arguments, **weights}


CASES = {
    "upstream": upstream,
    "class_weight": lambda model_class: weighted(model_class, class_weight={0: 1, 1: 5, 2: 0.2}),
    "sample_weight": lambda model_class: weighted(
        model_class, sample_weight=np.linspace(0.0, 3.0, 100)
    ),
}


def fit(make_case, model_class):
    model, arguments = make_case(model_class)
    history = model.fit(**arguments, verbose=0).history
    return {
        "weights": [weight.tolist() for weight in model.get_weights()],
        "history": {name: [float(v) for v in values] for name, values in history.items()},
    }


if json.loads(sys.argv[2])["is_stock"]:
    result = {c: fit(make_case, keras.Model) for c, make_case in CASES.items()}
    assert "tf_lbsgd" not in sys.modules
else:
    import tf_lbsgd as lbsgd

    with lbsgd.create_strategy().scope():
        result = {c: fit(make_case, lbsgd.DataParallelModel) for c, make_case in CASES.items()}
with open(sys.argv[1], "w") as file:
    json.dump(result, file)
