r"""Trains your own model without changing the package.

    python -m tf_lbsgd.cli.launch --num_workers=2 -- --flagfile=flags/quickstart.flags \
        --model=examples.own_model:small_network --run_dir=runs/own_model

--model names the function `small_network` below. Models of `keras.applications` work too: see
`resnet50v2` below, for images of 32 pixels or more.
"""

import keras
from keras import layers


def small_network(
    num_classes: int, image_shape: tuple[int, int, int], seed: int, dtype: str
) -> keras.Model:
    """Builds a small network of stock Keras layers.

    Args:
        num_classes: Number of logits.
        image_shape: (height, width, channels) of the images, uint8 in [0, 255].
        seed: The recipe's seed. The layers need no `seed`, because unseeded initializers already
            depend on the recipe's.
        dtype: The recipe's dtype policy. It is Keras' default while this function runs.
    """
    return keras.Sequential(
        [
            keras.Input(image_shape),
            layers.Rescaling(1 / 255),
            layers.Conv2D(16, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(num_classes, dtype="float32"),  # logits: no softmax
        ]
    )


def resnet50v2(
    num_classes: int, image_shape: tuple[int, int, int], seed: int, dtype: str
) -> keras.Model:
    """Builds ResNet-50 v2 of `keras.applications`.

    The arguments are those of `small_network`.
    """
    images = keras.Input(image_shape)
    network = keras.applications.ResNet50V2(
        weights=None,
        input_tensor=layers.Rescaling(1 / 127.5, offset=-1)(images),
        classes=num_classes,
        classifier_activation=None,
    )
    return keras.Model(images, network.output)
