"""One weight update: local sums, one all-reduce, the same decision everywhere."""
