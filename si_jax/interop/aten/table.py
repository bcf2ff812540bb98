"""The type of the tables of operations, and how ATen gives sizes."""

from collections.abc import Callable
from typing import Any

Function = Callable[..., Any]


class Table(dict[str, Function]):
    """Functions by the name of the ATen operation they compute, `'sum'` or, with an overload, `'max.dim'`."""

    def add(self, *names: str) -> Callable[[Function], Function]:
        """Decorator that puts a function under each of the names."""

        def put(function: Function) -> Function:
            self.update(dict.fromkeys(names, function))
            return function

        return put

    def find(self, name: str, overload: str) -> Function | None:
        """The function for a name with this overload, else for the name with any."""
        return self.get(f'{name}.{overload}') or self.get(name)


def per_axis(values: Any, count: int) -> tuple[int, ...]:
    """One value an axis, from one for all of them (ATen allows both)."""
    values = (values,) if isinstance(values, int) else tuple(values)
    return values * count if len(values) == 1 else values
