"""Times on a device: contenders take turns, each call alone on a cold cache, by device events.

What the host does before a launch is hidden behind the clearing of the cache where the call does
not wait for the device; where it waits, as a whole `sparsify` does, its waiting counts.
"""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Call = Callable[[], object]

#: Several times the largest cache of a device.
CACHE_BYTES = 1 << 28


def device_times(calls: Mapping[str, Call], device: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, one a round: entry r of each comes from round r."""
    if device == "cpu":
        return {name: [_wall(call) for _ in range(rounds)] for name, call in calls.items()}
    cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device=device)
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {
        name: [] for name in calls
    }
    for _ in range(rounds):
        for name, call in calls.items():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            cache.zero_()
            start.record()
            call()
            stop.record()
            events[name].append((start, stop))
    torch.cuda.synchronize()
    return {
        name: [start.elapsed_time(stop) / 1e3 for start, stop in pairs]
        for name, pairs in events.items()
    }


def _wall(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def graphed(call: Call, device: str) -> Call:
    """The launches of a call that does not wait, captured: replaying them costs the host nothing.

    On the CPU the call itself.
    """
    if device == "cpu":
        return call
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def ratio(times: Mapping[str, list[float]], name: str, other: str) -> float:
    """The median over the rounds of time of `name` / time of `other`."""
    pairs = zip(times[name], times[other], strict=True)
    return statistics.median(own / reference for own, reference in pairs)
