"""What forward passes call, in which order, and which inputs are the very same.

Every batch counts: control flow may differ between them. A trace that has seen some of the batches
is an assumption about the others, and is made good by what they turn out to call.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from spectral_engine.calibration.forward import Hook, hooked
from spectral_engine.calibration.inputs import Call, Inputs

Key = tuple[int, str]


@dataclass(frozen=True)
class Source:
    """Inputs that are seen at a module, called `name` in the model."""

    module: nn.Module
    name: str
    inputs: Inputs

    @property
    def key(self) -> Key:
        """Equal for the same inputs of the same module."""
        return id(self.module), self.inputs.slot

    def hooked(self, hook: Hook, module: nn.Module | None = None) -> AbstractContextManager[None]:
        """The hook, where the inputs can be seen; at that place of another module if given."""
        return hooked(module or self.module, hook, self.inputs.after)


@dataclass
class Trace:
    """The calls of sources, batch by batch.

    sources: those that are looked at, by key.
    count_rows: how many rows of a call's inputs count.
    batches: of each batch, the first and the last place of a source among its calls.
    calls, rows: of each source, over all batches.
    """

    sources: Mapping[Key, Source]
    count_rows: Callable[[Source, torch.Tensor], int]
    batches: list[dict[Key, tuple[int, int]]] = field(default_factory=list)
    calls: Counter[Key] = field(default_factory=Counter)
    rows: Counter[Key] = field(default_factory=Counter)
    _alike: dict[Key, Counter[Key]] = field(default_factory=dict)
    _seeing: bool = False
    _place: int = 0
    _last: tuple[Any, ...] = ()
    _previous: Key | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on every source; what is called inside `batch()` is noted."""
        with ExitStack() as stack:
            for source in self.sources.values():
                stack.enter_context(source.hooked(self._noting(source)))
            yield

    @contextmanager
    def batch(self) -> Iterator[None]:
        """What runs inside is the next batch."""
        self.batches.append({})
        self._seeing, self._place = True, 0
        try:
            yield
        finally:
            self._seeing, self._last, self._previous = False, (), None

    @property
    def reached_all(self) -> bool:
        """Whether every source has been called."""
        return self.sources.keys() <= self.calls.keys()

    def place(self, key: Key) -> tuple[int, int]:
        """The batch in which a source was called first, and its first place there."""
        return next((i, seen[key][0]) for i, seen in enumerate(self.batches) if key in seen)

    def _noting(self, source: Source) -> Hook:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
            found = source.inputs.find(Call(args, kwargs, output)) if self._seeing else None
            if found is None:
                return
            if not source.inputs.after:  # else nobody else has them
                self._compare(source, found)
            key, seen = source.key, self.batches[-1]
            seen[key] = (seen.get(key, (self._place, 0))[0], self._place)
            self._place += 1
            self.calls[key] += 1
            self.rows[key] += self.count_rows(source, found)

        return hook

    def fresh(self) -> "Trace":
        """One of the same sources that has seen nothing yet."""
        return Trace(self.sources, self.count_rows)

    def told(self) -> dict[str, Any]:
        """What this one has seen, as another process can read it."""
        places = {key: place for place, key in enumerate(self.sources)}
        return {
            "batches": [{places[key]: ends for key, ends in seen.items()} for seen in self.batches],
            "calls": {places[key]: count for key, count in self.calls.items()},
            "rows": {places[key]: count for key, count in self.rows.items()},
            "alike": {
                places[key]: {places[other]: count for other, count in found.items()}
                for key, found in self._alike.items()
            },
        }

    def extend(self, told: Sequence[Mapping[str, Any]]) -> None:
        """Add what several traces have seen, each of its share of the batches that come next.

        Args:
            told: by traces of the same sources; batch i of all is one of the (i mod N)-th.
        """
        keys, first = list(self.sources), len(self.batches)
        batches = [iter(one["batches"]) for one in told]
        for one in told:
            self.calls.update({keys[key]: count for key, count in one["calls"].items()})
            self.rows.update({keys[key]: count for key, count in one["rows"].items()})
            for key, found in one["alike"].items():
                alike = self._alike.setdefault(keys[key], Counter())
                alike.update({keys[other]: count for other, count in found.items()})
        for place in range(first, first + sum(len(one["batches"]) for one in told)):
            seen = next(batches[place % len(told)])
            self.batches.append({keys[key]: ends for key, ends in seen.items()})

    def _compare(self, source: Source, found: torch.Tensor) -> None:
        """Note whether the inputs are also those of the call before, not changed since."""
        if found.is_inference():  # whether they have changed is not known
            self._last, self._previous = (), source.key
            return
        now = (source.inputs.rows, found._version, found)
        previous, self._previous = self._previous, source.key
        same = bool(self._last) and now[:2] == self._last[:2] and found is self._last[2]
        if same and previous is not None and previous != source.key:
            self._alike.setdefault(source.key, Counter())[previous] += 1
        self._last = now

    def origin(self, key: Key) -> Key:
        """The first source that has had the very same inputs in every call of every batch."""
        while True:
            for other, count in self._alike.get(key, {}).items():
                if count == self.calls[key] == self.calls[other]:
                    break
            else:
                return key
            if self.place(other) > self.place(key):
                return key
            key = other

    def end_of(self, keys: Iterable[Key]) -> Source | None:
        """A source that is called only after the last call of all these, in every batch.

        The one that is called earliest in the first batch; None if there is none. It is of use
        only once all batches have been seen.
        """
        own = set(keys)
        own |= {key for key in self.calls if self.origin(key) in own}
        last = [max((seen[key][1] for key in own & seen.keys()), default=-1)
                for seen in self.batches]  # fmt: skip
        best: tuple[tuple[int, int], Source] | None = None
        for key, source in self.sources.items():
            if key in own or key not in self.calls:
                continue
            places = zip(self.batches, last, strict=True)
            if all(key not in seen or seen[key][0] > end for seen, end in places):
                place = self.place(key)
                if best is None or place < best[0]:
                    best = place, source
        return None if best is None else best[1]
