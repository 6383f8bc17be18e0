"""Readers of the file formats in which RNA data is published."""
