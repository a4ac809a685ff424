"""The one place that loads native libraries."""


def load() -> None:
    pass
