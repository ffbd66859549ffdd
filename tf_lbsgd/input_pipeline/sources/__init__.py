"""Holds the sources of labelled images, one kind a file."""
