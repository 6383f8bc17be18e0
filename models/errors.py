"""The one exception that `models` raises for input a user can mend."""


class ModelError(ValueError):
    """A sentence for the user: what was found, where (file, key or tensor), what was expected, what to do next."""
