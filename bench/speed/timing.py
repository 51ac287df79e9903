"""Ratios on a noisy machine: the contenders take turns, and ratios are taken within a round.

A machine that others load runs at one speed in one second and at another in the next. So the
contenders take turns, A B C A B C ..., each ratio is that of two times of one round, and the median
over the rounds is what counts.
"""

import statistics
import time
from collections.abc import Callable, Mapping

Contender = Callable[[], object]
Times = dict[str, list[float]]

#: Every contender takes part in at least this many rounds,
LEAST_ROUNDS = 3
#: then in more up to this many,
MOST_ROUNDS = 15
#: until this many seconds went into it.
BUDGET = 0.5
#: A call shorter than this many seconds is made twice and timed the second time, so that it does
#: not pay for what its predecessor left in the caches.
BRIEF = 0.05


def interleave(
    contenders: Mapping[str, Contender], clock: Callable[[], float] = time.perf_counter
) -> Times:
    """Seconds of each contender, one a round, in step: entry r of each comes from round r.

    Every contender is called once beforehand, which compiles what has to be compiled. Slow ones
    take part in the first rounds only, so the lists may differ in length.
    """

    def seconds(contender: Contender) -> float:
        start = clock()
        result = contender()
        stop = clock()
        del result  # to free a large result takes time too, which is not the contender's
        return stop - start

    latest = {name: seconds(contender) for name, contender in contenders.items()}
    times: Times = {name: [] for name in contenders}
    for finished in range(MOST_ROUNDS):
        for name, contender in contenders.items():
            spent = times[name]
            if len(spent) < finished or (finished >= LEAST_ROUNDS and sum(spent) >= BUDGET):
                continue
            if latest[name] < BRIEF:
                contender()
            latest[name] = seconds(contender)
            spent.append(latest[name])
    return times


def ratio(times: Times, name: str, reference: str) -> float:
    """time of `name` / time of `reference`: the median over the rounds that both took part in."""
    pairs = zip(times[name], times[reference], strict=False)
    return statistics.median(own / other for own, other in pairs)
