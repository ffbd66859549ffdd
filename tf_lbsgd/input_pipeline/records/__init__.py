"""Reads files of records and takes records apart."""
