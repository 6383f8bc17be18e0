"""The one exception that `data` raises for input a user can mend."""


class DataError(ValueError):
    """A sentence for the user: what was found, where (file, line or record), what was expected, what to do next."""
