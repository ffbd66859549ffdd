"""The network and the workers of `benchmark_network.py`."""
