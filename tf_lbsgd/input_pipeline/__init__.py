"""Batches whose order, grouping and augmentation follow from the seed, whatever the number of
workers.

Read `order` first: which sample is read at which step. `sources` says what a source is,
`augmentation` what happens to an image, `pipeline` puts them together.
"""

from tf_lbsgd.input_pipeline.augmentation import AUGMENTATIONS
from tf_lbsgd.input_pipeline.image_decoding import EncodedImages
from tf_lbsgd.input_pipeline.order import (
    evaluation_ids,
    evaluation_steps,
    sample_ids,
    training_ids,
)
from tf_lbsgd.input_pipeline.pipeline import (
    dataset_options,
    evaluation_dataset,
    training_dataset,
)
from tf_lbsgd.input_pipeline.source import Source
from tf_lbsgd.input_pipeline.sources.opening import open_source
from tf_lbsgd.input_pipeline.sources.tolerant_images import (
    Replacements,
    UnreadableImageError,
    name_unreadable,
    unreadable_reason,
)

__all__ = [
    "AUGMENTATIONS",
    "EncodedImages",
    "Replacements",
    "Source",
    "UnreadableImageError",
    "dataset_options",
    "evaluation_dataset",
    "evaluation_ids",
    "evaluation_steps",
    "name_unreadable",
    "open_source",
    "sample_ids",
    "training_dataset",
    "training_ids",
    "unreadable_reason",
]
