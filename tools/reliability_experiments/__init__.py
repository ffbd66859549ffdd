"""Harms trainings and measures the outcome, for `tools/reliability.py`.

    harness.py     trainings that can be harmed, and the run of an experiment
    trials.py      experiments of trials that are drawn and check their invariants
    kills.py ...   one experiment each, or two that differ in a signal

To add an experiment, write a file that defines an `Experiment`, and name it in the table
`EXPERIMENTS` of `tools/reliability.py`.
"""
