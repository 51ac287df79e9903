"""What all matrices of a call share."""

from dataclasses import dataclass

from spectral_kernels.reference.laws import Law
from spectral_kernels.reference.patterns import Pattern


@dataclass(frozen=True)
class Shared:
    """What all matrices of a call share, checked. by_row: each row is a group of its own."""

    law: Law
    rescale: bool = False
    by_row: bool = False
    pattern: Pattern | None = None
    check: bool = True
