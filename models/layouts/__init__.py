"""Conversions between our parameter names and those of released checkpoints, as tables."""
