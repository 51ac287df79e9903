"""What is wrong with the data of a call: raised at once on the host, when it is read on a device.

On a device an error is a count in its memory. To read it the host must wait, so a call that must
not wait leaves its errors to whoever reads the result.
"""

from typing import Any

#: The message about scores that are not finite; `{}` is how many.
NONFINITE = (
    "weight: expected finite entries whose scores fit float32; got {} that are NaN or infinite"
)
#: The message about kept entries that overflow when divided. Format the dtype first, then how many.
OVERFLOW = "rescale: {{}} A / p overflow {}; use rescale=False, another law, or a wider dtype"


class Deferred:
    """Errors of a call that are not raised yet: counts of what must not occur, with messages."""

    def __init__(self) -> None:
        self._pending: list[tuple[Any, str]] = []

    def add(self, found: Any, message: str) -> None:
        """Raise an error that is known, and put off one that only the device knows.

        Args:
            found: how often something wrong occurs: an int, or an integer on the device.
            message: what is raised where `found` is not 0; {} in it stands for `found`.

        Raises:
            ValueError: `found` is an int and not 0.
        """
        if not isinstance(found, int):
            self._pending.append((found, message))
        elif found:
            raise ValueError(message.format(found))

    def raise_pending(self) -> None:
        """Read what was put off, which waits for the device.

        Raises:
            ValueError: the first error that occurred.
        """
        for found, message in self._pending:
            count = int(found)
            if count:
                raise ValueError(message.format(count))
