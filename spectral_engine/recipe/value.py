"""The manner of a recipe's parts: plain values, printed as they would be written."""

from dataclasses import fields


class Value:
    """A dataclass that prints as the shortest call that makes it: no arguments at their default."""

    def __repr__(self) -> str:
        parts = []
        for part in fields(self):  # type: ignore[arg-type]
            value = getattr(self, part.name)
            if part.init and value != part.default:
                plain = list(value) if isinstance(value, tuple) else value
                parts.append(repr(plain) if not part.kw_only else f"{part.name}={plain!r}")
        return f"{type(self).__name__}({', '.join(parts)})"
