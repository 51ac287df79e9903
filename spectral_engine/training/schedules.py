"""Schedules: at which steps of training to prune, and to which sparsity; see `Pruner`."""

from collections.abc import Mapping
from typing import Any

from spectral_engine._util.checks import integer, number

#: Prunings of one schedule; more are a mistake, and their list would fill the memory.
_MOST = 1_000_000


class Schedule:
    """Steps, counted from 0, at which to prune, and the sparsity to reach at each.

    Raises:
        TypeError, ValueError: no steps, steps that are not counts, sparsities outside [0, 1) or
            falling: what was pruned does not grow back.
    """

    def __init__(self, targets: Mapping[int, float]) -> None:
        if not isinstance(targets, Mapping):
            raise TypeError(
                f"targets: expected steps with their sparsities; got {type(targets).__name__}"
            )
        if not targets:
            raise ValueError("targets: expected at least one step; got none")
        share = "targets: sparsity" if type(self) is Schedule else "sparsity"
        found = {
            integer("targets: step", step, least=0): _fraction(share, targets[step])
            for step in targets
        }
        self.targets = {step: found[step] for step in sorted(found)}
        asked = list(self.targets.values())
        if asked != sorted(asked):
            raise ValueError(f"targets: expected sparsities that never fall; got {asked}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.targets})"

    @property
    def first(self) -> int:
        """The first step at which it prunes."""
        return next(iter(self.targets))

    @property
    def last(self) -> int:
        """The last step at which it prunes."""
        return max(self.targets)


class OneShot(Schedule):
    """All at once, at step `start`."""

    def __init__(self, sparsity: float, start: int = 0) -> None:
        super().__init__({integer("start", start, least=0): sparsity})


class Iterative(Schedule):
    """Prune and retrain: `rounds` prunings `every` steps apart, the first at `start`.

    Each keeps the same fraction of what the one before has kept, (1 - sparsity)^(1 / rounds)
    (Han et al., arXiv 1506.02626; Frankle and Carbin, arXiv 1803.03635, section 1).
    """

    def __init__(self, sparsity: float, rounds: int, every: int = 1, start: int = 0) -> None:
        rounds = integer("rounds", rounds, least=1, most=_MOST)
        every, start = integer("every", every, least=1), integer("start", start, least=0)
        kept = 1.0 - _fraction("sparsity", sparsity)
        super().__init__(
            {
                start + index * every: 1.0 - kept ** ((index + 1) / rounds)
                for index in range(rounds - 1)
            }
            | {start + (rounds - 1) * every: sparsity}
        )


class Constant(Schedule):
    """The same sparsity every `every` steps from `start` to `end`.

    With masks that last, only the first prunes. With masks=False weights grow back in between,
    and each pruning chooses anew among all of them.
    """

    def __init__(self, sparsity: float, end: int, every: int = 1, start: int = 0) -> None:
        super().__init__(dict.fromkeys(_steps(start, end, every), sparsity))


class Cubic(Schedule):
    """Fast at first, slower as less is left: every `every` steps from `start` to `end`,

        s_t = s_f + (s_i - s_f) (1 - (t - start) / (end - start))^3,

    from s_i = `initial` to s_f = `sparsity` (Zhu and Gupta, arXiv 1710.01878, equation 1).
    """

    def __init__(
        self, sparsity: float, end: int, every: int = 1, start: int = 0, initial: float = 0.0
    ) -> None:
        final, initial = _fraction("sparsity", sparsity), _fraction("initial", initial)
        steps = _steps(start, end, every)
        super().__init__(
            {
                step: final + (initial - final) * (1.0 - (step - start) / (end - start)) ** 3
                for step in steps
            }
        )


def _steps(start: int, end: int, every: int) -> range:
    start, every = integer("start", start, least=0), integer("every", every, least=1)
    end = integer("end", end, least=start + 1)
    if (end - start) % every:
        raise ValueError(f"end: expected start plus a multiple of every, {every}; got {end}")
    if (end - start) // every >= _MOST:
        raise ValueError(
            f"every: expected at most {_MOST} prunings from start to end; "
            f"got {(end - start) // every + 1}"
        )
    return range(start, end + 1, every)


def _fraction(name: str, value: Any) -> float:
    """The value, a fraction of zeros in [0, 1)."""
    return number(name, value, least=0.0, below=1.0, meaning="the fraction of zeros,")
