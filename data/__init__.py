"""Raw files -> shards -> the samples of a step, as numpy. Knows letters, not models."""
