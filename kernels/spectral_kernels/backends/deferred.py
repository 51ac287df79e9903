"""What is wrong with the data of a call: raised at once where it is known, later where it is not.

On a device a flaw is a count in its memory. Reading it waits for the device, so that a call which
must not wait leaves its flaws to whoever reads the result.
"""

from typing import Any

#: What scores that are not finite are refused with; `{}` is how many.
BROKEN = "weight: expected finite entries whose scores fit float32; got {} that are NaN or infinite"
#: What kept entries that overflow once divided are refused with: format the dtype, then how many.
OVERFLOW = "rescale: {{}} A / p overflow {}; use rescale=False, another law, or a wider dtype"


class Flaws:
    """Counts of what must not occur, with their messages; device scalars wait to be read."""

    def __init__(self) -> None:
        self._pending: list[tuple[Any, str]] = []

    def add(self, found: Any, message: str) -> None:
        """`found` of something: an int, or an integer on the device; {} in the message is that.

        Raises:
            ValueError: an int that is not 0.
        """
        if not isinstance(found, int):
            self._pending.append((found, message))
        elif found:
            raise ValueError(message.format(found))

    def settle(self) -> None:
        """Read what is pending; waits for the device.

        Raises:
            ValueError: the first that occurs.
        """
        for found, message in self._pending:
            count = int(found)
            if count:
                raise ValueError(message.format(count))
