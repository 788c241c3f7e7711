"""The error of all readers of checkpoint files."""


class SourceError(ValueError):
    """A file that cannot be read as weights, or holds other weights than expected."""
