"""Starts, checks, watches and ends the workers of a run.

It needs no TensorFlow.
"""
