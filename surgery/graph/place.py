"""Where in a forward a tensor can be seen."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A tensor in a forward: the first argument of a module that is called once, or its output."""

    module: str
    output: bool

    def __str__(self) -> str:
        return f"the {'output' if self.output else 'input'} of {self.module!r}"
