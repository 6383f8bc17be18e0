"""The one exception that `pretrain` raises for input a user can mend."""


class PretrainError(ValueError):
    """A sentence for the user: what was found, where (file, key or step), what was expected, what to do next."""
