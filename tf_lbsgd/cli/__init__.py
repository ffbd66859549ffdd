"""The binaries: absl flags in, one library call, a line that says where the results are."""
