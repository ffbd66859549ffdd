"""Makes batches that follow from the seed.

Order, grouping and augmentation are functions of seed, epoch and recipe, and not of the number of
workers. Read `order` first: it
says which sample is read at which step. `source` says what a source is, `augmentation` what happens
to an image, and `pipeline` puts them together.
"""

from tf_lbsgd.input_pipeline.augmentation import Augmentation
from tf_lbsgd.input_pipeline.batch_layout import BatchLayout
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
from tf_lbsgd.input_pipeline.source import IndexedSource, Source
from tf_lbsgd.input_pipeline.sources.array_source import ArraySource
from tf_lbsgd.input_pipeline.sources.encoded_images import EncodedImages, UnreadableImageError
from tf_lbsgd.input_pipeline.sources.opening import open_source
from tf_lbsgd.input_pipeline.sources.tolerant_images import TolerantImages

__all__ = [
    "ArraySource",
    "Augmentation",
    "BatchLayout",
    "EncodedImages",
    "IndexedSource",
    "Source",
    "TolerantImages",
    "UnreadableImageError",
    "dataset_options",
    "evaluation_dataset",
    "evaluation_ids",
    "evaluation_steps",
    "open_source",
    "sample_ids",
    "training_dataset",
    "training_ids",
]
