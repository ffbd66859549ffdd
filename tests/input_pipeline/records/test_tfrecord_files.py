"""Headers of TFRecord files that no writer makes."""

import struct

import pytest

from tf_lbsgd.input_pipeline.records.tfrecord_files import masked_crc, record_lengths


@pytest.mark.parametrize("length", [2**31 + 1, 2**63, 2**64 - 1])
def test_a_length_that_no_record_has_is_refused(length, tmp_path):
    header = struct.pack("<Q", length)
    path = tmp_path / "train-00000-of-00001"
    path.write_bytes(header + struct.pack("<I", masked_crc(header)))
    with pytest.raises(ValueError, match=r"No TFRecord header .* at byte 0\. .*at most 2 GiB"):
        record_lengths(path)
