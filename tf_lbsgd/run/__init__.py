"""Describes a run: its recipe, plan, options and folder.

Nothing in this package imports TensorFlow.
"""
