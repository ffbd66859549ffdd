"""Parts of `tools/benchmark_network.py`: the network, and the workers that are compared."""
