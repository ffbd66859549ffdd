"""Files of records, and what is in a record: bytes, not yet images."""
