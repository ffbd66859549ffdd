"""The command-line binaries, one module each.

Each binary parses absl flags, makes one library call, and prints where the results are.
"""
