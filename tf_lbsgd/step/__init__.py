"""One weight update: local sums, one all-reduce, one decision."""
