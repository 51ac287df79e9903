"""The budgets: how many entries are kept, and how the layers share them.

| budget   | keeps                                                                            |
|----------|----------------------------------------------------------------------------------|
| Uniform  | the same share of every layer                                                    |
| Global   | what is over one threshold on |A|, in all layers                                 |
| ERK      | in proportion to the sum of a weight's dimensions (Erdos-Renyi-kernel, Evci,     |
|          | Gale, Menick, Castro, Elsen, arXiv 1911.11134)                                   |
| Spectral | what is over one threshold on |A| / ||A||_F, which minimises the sum over layers |
|          | of ||S - A||_F^2 / ||A||_F^2                                                     |
| MaxError | as little as the error allows                                                    |
| Pattern  | N of every M columns, or whole blocks                                            |

`pruning/allocation.py` shares them out. A sparsity of None is 0.9, or the pattern's own.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from spectral_kernels import (
    GROUP_NAMES,
    NM,
    Blocks,
    GroupName,
    entries_to_keep,
    parse_pattern,
    pattern_sparsity,
)

from spectral_engine._util.checks import boolean, number, one_of, shown
from spectral_engine.recipe.value import Value

DEFAULT_SPARSITY = 0.9


class Budget(Value):
    """What the budgets have in common; use one of its subclasses.

    sparsity: the fraction of zeros over all layers, in [0, 1). Exact where the largest are kept;
        where entries are drawn, the expected count is within 1e-3 of it.
    group: "tensor", or "row" to give every row of a layer the same sparsity.
    """

    name: ClassVar[str]
    sparsity: float | None
    group: GroupName

    @property
    def pattern(self) -> NM | Blocks | None:
        """The pattern of the zeros, if they have one."""
        return None

    @property
    def target(self) -> float | None:
        """The sparsity to reach, 0.9 where none was given; None where an error decides it."""
        return DEFAULT_SPARSITY if self.sparsity is None else self.sparsity

    @property
    def share(self) -> float | None:
        """The sparsity of every weight where all have the same, None where contents decide."""
        return None

    def at(self, sparsity: float) -> Self:
        """The same budget with another sparsity.

        Raises:
            TypeError, ValueError: no fraction in [0, 1), or a budget that decides it otherwise.
        """
        return replace(self, sparsity=sparsity)  # type: ignore[type-var]


@dataclass(frozen=True, repr=False)
class Uniform(Budget):
    """The same sparsity for every layer."""

    name: ClassVar[str] = "uniform"
    sparsity: float | None = None
    group: GroupName = field(default="tensor", kw_only=True)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def share(self) -> float | None:
        """The sparsity to reach."""
        return self.target


@dataclass(frozen=True, repr=False)
class Shared(Budget):
    """A budget that layers share by what is in them.

    Args:
        sparsity, group: see `Budget`.
        floor: the least density of a layer; None for a tenth of that of all layers together.
    """

    sparsity: float | None = None
    floor: float | None = field(default=None, kw_only=True)
    group: GroupName = field(default="tensor", kw_only=True)

    def __post_init__(self) -> None:
        _check(self)
        _check_floor(self)


@dataclass(frozen=True, repr=False)
class Global(Shared):
    """One threshold on |A| for all layers."""

    name: ClassVar[str] = "global"


@dataclass(frozen=True, repr=False)
class ERK(Shared):
    """Density in proportion to (sum of dimensions) / (product of dimensions), at most 1."""

    name: ClassVar[str] = "erk"


@dataclass(frozen=True, repr=False)
class Spectral(Shared):
    """One threshold on |A| / ||A||_F for all layers: the least sum of squared relative errors."""

    name: ClassVar[str] = "spectral"


@dataclass(frozen=True, repr=False)
class MaxError(Budget):
    """As sparse as a relative error ||S - A||_F / ||A||_F allows.

    It holds for `Magnitude` as it is; every other method, group, pattern or refit leaves more.

    Args:
        error: in [0, 1).
        together: False bounds the error of each layer; True the root mean square over all layers.
        floor: the least density of a layer; none by default.
        group: see `Budget`.
    """

    name: ClassVar[str] = "max-error"
    error: float
    together: bool = field(default=False, kw_only=True)
    floor: float | None = field(default=None, kw_only=True)
    group: GroupName = field(default="tensor", kw_only=True)
    sparsity: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "error", number("error", self.error, least=0.0, below=1.0))
        boolean("together", self.together)
        _check(self)
        _check_floor(self)

    @property
    def target(self) -> float | None:
        """None: the error decides."""
        return None

    def at(self, sparsity: float) -> Self:
        """Refused: the error decides the sparsity."""
        raise ValueError(f"sparsity: {self!r} decides it, so expected None; got {sparsity!r}")


@dataclass(frozen=True, repr=False)
class Pattern(Budget):
    """Zeros in a pattern that hardware can use.

    Args:
        shape: "N:M", as "2:4", keeps N of every M consecutive columns of each row, also where
            entries are drawn; "RxC", as "16x16", keeps or drops whole blocks, by the sum of their
            squared scores. It must divide every weight.
        sparsity: of blocks. "N:M" has its own, (M - N) / M, and takes no other.
        group: of blocks.
        shared: of blocks, how the layers share the budget, as `ERK(0.9)`, in place of a sparsity.
    """

    name: ClassVar[str] = "pattern"
    shape: str
    sparsity: float | None = None
    group: GroupName = field(default="tensor", kw_only=True)
    shared: Shared | MaxError | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not (self.shared is None or isinstance(self.shared, Shared | MaxError)):
            raise TypeError(f"shared: expected a budget such as ERK(0.9); got {shown(self.shared)}")
        parsed = parse_pattern(self.shape, "shape")
        _check(self)
        pattern_sparsity(self.shape, self.sparsity)
        if isinstance(parsed, NM):
            for name, value, usual in (
                ("group", self.group, "tensor"),
                ("shared", self.shared, None),
            ):
                if value != usual:
                    raise ValueError(
                        f"{name}: pattern {self.shape!r} gives every group its own budget, so "
                        f"expected {usual!r}; got {value!r}"
                    )
            object.__setattr__(self, "sparsity", None)  # its own; equal however it was said
        if self.shared is not None and (self.sparsity is not None or self.shared.group != "tensor"):
            raise ValueError(
                "shared: decides the sparsity and not the group, so expected sparsity=None and "
                f"group 'tensor' in it; got {self!r}"
            )

    @property
    def pattern(self) -> NM | Blocks:
        """The pattern, parsed."""
        return parse_pattern(self.shape)

    @property
    def target(self) -> float | None:
        """That of "N:M", the one given, or that of the shared budget."""
        parsed = self.pattern
        if isinstance(parsed, NM):
            return parsed.sparsity
        return super().target if self.shared is None else self.shared.target

    @property
    def share(self) -> float | None:
        """That of "N:M", or the one given; None where a budget is shared."""
        return self.target if self.shared is None else None

    def at(self, sparsity: float) -> Self:
        """The same pattern with another sparsity, which "N:M" only takes if it is its own."""
        if self.shared is None:
            return replace(self, sparsity=sparsity)
        return replace(self, shared=self.shared.at(sparsity))


BUDGETS: dict[str, type[Budget]] = {
    cls.name: cls for cls in (Uniform, Global, ERK, Spectral, MaxError, Pattern)
}


def _check(budget: Budget) -> None:
    if budget.sparsity is not None:
        entries_to_keep(1, budget.sparsity)  # refuses what is no fraction in [0, 1)
        object.__setattr__(budget, "sparsity", float(budget.sparsity))
    one_of("group", budget.group, GROUP_NAMES)


def _check_floor(budget: Shared | MaxError) -> None:
    if budget.floor is not None:
        object.__setattr__(budget, "floor", number("floor", budget.floor, least=0.0, most=1.0))
