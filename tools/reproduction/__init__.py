"""Reproduces the paper's claims on Fashion-MNIST, for `tools/reproduce.py`.

    sets.py        which recipes belong to which table or figure
    runner.py      trains the runs of sets side by side and keeps their records
    progress.py    shows how far the runs are
    tables.py      writes the tables and figures of the runs that are complete

To add an experiment, write a function in `sets.py` and name it in `SETS` there.
"""
