"""Makes tf.train.Example messages, and takes them apart.

A message holds an encoded image and its label.
"""

import dataclasses

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class ExampleFormat:
    """Says where the image and the label are.

    Attributes:
      image_key: Feature of one string: a JPEG or PNG file.
      label_key: Feature of one integer.
      first_label: The label of the first class. Stored labels are [first_label, first_label +
        number of classes). It is 1 in the classic ImageNet layout, whose 0 is no class, and 0 in
        others.
      class_names: One a class.
    """

    image_key: str
    label_key: str
    first_label: int
    class_names: tuple[str, ...]

    def parse(self, serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Takes messages apart, as a graph operation.

        Args:
          serialized: string [m]. m may be zero.

        Returns:
          Encoded images string [m], and labels int32 [m] in [0, number of classes). A label out of
          range, or a message without the features, is an InvalidArgumentError when it runs.
        """
        features = tf.io.parse_example(
            serialized,
            {
                self.image_key: tf.io.FixedLenFeature([], tf.string),
                self.label_key: tf.io.FixedLenFeature([], tf.int64),
            },
        )
        stored, num_classes = features[self.label_key], len(self.class_names)
        labels = stored - self.first_label
        in_range = tf.reduce_all((labels >= 0) & (labels < num_classes))
        expected = (
            f"Expected: labels from {self.first_label} to {self.first_label + num_classes - 1}. "
            "In a clone of tf_lbsgd, `python tools/index_tfrecord.py` finds out which there are."
        )
        message = [f"Label out of range in '{self.label_key}'. Received:", stored, expected]
        with tf.control_dependencies([tf.debugging.Assert(in_range, message, summarize=32)]):
            return features[self.image_key], tf.cast(labels, tf.int32)


def make_example(encoded: bytes, stored_label: int, filename: str) -> bytes:
    """Serializes an image in the classic ImageNet layout.

    Args:
      encoded: The contents of a JPEG or PNG file.
      stored_label: From 1 to the number of classes.
      filename: What the file was called, for people.
    """
    features = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
        "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[stored_label])),
        "image/filename": tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[filename.encode()])
        ),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
