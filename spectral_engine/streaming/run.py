"""Calibrated pruning of a folder, one block in memory at a time.

Each step of a forward pass is a call of a piece of the model: its weights are read, its layers are
calibrated and pruned as they would be in memory, what it gives for each batch goes to the disk, and
its weights are let go of. In the end the folder is written again with what has changed.

Processes that share their work all load the piece. Each runs its share of the batches, puts what
they give on the disk, and prunes its share of the layers; all get what becomes of every layer. The
first keeps the account of what is done. All see the same folder, so that any number of them can go
on from what others have done.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from spectral_engine._util.memory import trim_heap
from spectral_engine.calibration.request import UNREACHED, Calibrated, Calibration, Request
from spectral_engine.distributed.groups import is_first, rank_of, sharing_group
from spectral_engine.distributed.owners import by_first, errors_of_all, is_own
from spectral_engine.layers.ready import require_ready
from spectral_engine.pruning.model import pruned_layers
from spectral_engine.pruning.plan import ModelPlan
from spectral_engine.pruning.report import LayerReport
from spectral_engine.streaming.files.lookup import looked_up, tables_of
from spectral_engine.streaming.files.rows import Row, in_order, plain_rows, rows_of
from spectral_engine.streaming.files.shelf import Shelf
from spectral_engine.streaming.files.unfinished import Unfinished
from spectral_engine.streaming.files.weights import FileWeights, Touched
from spectral_engine.streaming.pieces import (
    Piece,
    loaded,
    pieces_of,
    positions_in,
    resident_parameters,
)
from spectral_engine.streaming.reaching import Reaching
from spectral_engine.streaming.relay import Relay
from spectral_engine.streaming.shares import Shares, renewed
from spectral_engine.streaming.survey import Survey, surveyed


@dataclass
class Streaming:
    """A model whose weights are in a folder, to be pruned there.

    Args:
        model: on the meta device, of the folder's architecture, its buffers as they are computed.
        weights: of the folder.
        plan: what is done to each layer.
        calibration: whose batches are in memory.
        seed, measure: as for `prune`.
        max_memory: of all that a run holds, beside the program itself; None for no limit.
    """

    model: nn.Module
    weights: FileWeights
    plan: ModelPlan
    calibration: Calibration
    seed: int
    measure: bool
    max_memory: int | None = None
    pieces: list[Piece] = field(init=False)
    shares: Shares = field(init=False)
    _tables: list[Piece] = field(init=False)
    _order: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.pieces = pieces_of(self.model)
        self._order = {layer.name: i for i, layer in enumerate(self.plan.layers)}
        self.shares = Shares(self.model, self.pieces, self.plan)
        unpruned = [one for one in self.pieces if not self.shares.requests_of(one)]
        self._tables = tables_of(unpruned, self.weights)

    def run(self, work: Unfinished, show: Any) -> tuple[list[LayerReport], int]:
        """Prune every layer, each step's result under `work`.

        Args:
            work: of this run, or of an earlier one, from which it goes on.
            show: called with each layer's row; those of an earlier run come at once.

        Returns:
            The rows in the order of `prune`, and how often the batches went through the model.

        Raises:
            ValueError: names the block or the argument, what was expected and what came.
        """
        with errors_of_all(self._group):
            self.weights.load_resident(self.model, self.pieces)
        shelf = Shelf(work.outputs)
        if is_first():
            shelf.forget_all_from(work.state.get("done", 0))
        relay = Relay(
            self.model, self.pieces, [], self.calibration.batches, self.calibration, shelf
        )
        with looked_up(self._tables, self.weights), relay.installed():
            survey = self._survey(relay, work)
            last = self.shares.last(survey)
            rows = rows_of(work.state.get("rows", []))
            passes = work.state.get("passes", 0)
            for row in rows:
                show(row.report)
            steps = [*range(last + 1), len(survey.steps)]
            for step in steps[work.state.get("done", 0) :]:
                changed: dict[str, torch.Tensor] = {}
                if step <= last:
                    new, more = self._step(relay, survey, step, last, changed)
                else:
                    new, more = self._rest(survey, last, changed), 0
                for row in new:
                    show(row.report)
                rows = rows + new
                passes = max(passes, more) if self._dense else passes + more
                done = steps.index(step) + 1
                state = {
                    "steps": [piece.name for piece in survey.steps],
                    "needs": [sorted(one) for one in survey.needs],
                    "done": done,
                    "rows": plain_rows(rows),
                    "passes": passes,
                }
                with errors_of_all(self._group):  # nobody goes on before it is on the disk
                    if is_first():
                        work.store(done - 1, changed)
                        work.commit(state)
                trim_heap()
                for place in range(step if is_first() else 0):
                    if not any(place in survey.needs[later] for later in range(step + 1, last + 1)):
                        shelf.forget(place)
        return in_order(rows), passes

    @property
    def _dense(self) -> bool:
        """Whether layers see what the dense model gives."""
        return self.calibration.sequential is False

    # What is loaded

    @property
    def _group(self) -> Any:
        """The processes that share this run; None for one alone."""
        return sharing_group()

    @contextmanager
    def _load(self, piece: Piece) -> Iterator[None]:
        """The piece with its weights, all but those of a table, which are looked up."""
        if piece in self._tables:
            yield
            return
        with errors_of_all(self._group):
            values = self.weights.read(name for name, *_ in piece.parameters())
        with loaded(piece, values):
            del values
            yield
        trim_heap()

    def _left(self, piece: Piece) -> int:
        """Bytes for moments, working memory and what is kept inside a block from pass to pass."""
        if self.max_memory is None:
            return self.calibration.max_bytes
        return max(
            1, min(self.calibration.max_bytes, self.max_memory - self.bytes_without_moments(piece))
        )

    def bytes_without_moments(self, piece: Piece) -> int:
        """What is held while a piece runs over the largest batch, without moments of its inputs."""
        resident = resident_parameters(self.model, self.pieces)
        fixed = sum(one.numel() * one.element_size() for *_, one in resident)
        most = max(map(positions_in, self.calibration.batches))
        rows = piece.width * self.weights.dtype.itemsize * most
        own = min(piece.bytes, rows) if piece in self._tables else piece.bytes
        return own + fixed + piece.working_bytes(most)

    # Steps

    def _survey(self, relay: Relay, work: Unfinished) -> Survey:
        """What a forward pass does, known already if a run goes on."""
        if work.state:
            steps, needs = work.state["steps"], work.state["needs"]
        else:
            steps, needs = by_first(lambda: self._surveyed(relay))
        by_name = {piece.name: piece for piece in self.pieces}
        relay.steps[:] = [by_name[name] for name in steps]
        return Survey(relay.steps, [frozenset(one) for one in needs])

    def _surveyed(self, relay: Relay) -> tuple[list[str], list[list[int]]]:
        """The names of the steps' pieces, and the steps that each needs."""
        found = surveyed(
            relay, self._load, [one for one in self.pieces if self.shares.requests_of(one)]
        )
        return [piece.name for piece in found.steps], [sorted(one) for one in found.needs]

    def _step(
        self,
        relay: Relay,
        survey: Survey,
        step: int,
        last: int,
        changed: dict[str, torch.Tensor],
    ) -> tuple[list[Row], int]:
        """Prune the layers of a step's piece, and put what it gives on the shelf.

        Args:
            last: the last step that matters.
            changed: gets the files' tensors that become others.

        Returns:
            The rows, and how many passes they took.
        """
        piece = survey.steps[step]
        relay.move(step, survey.needs[step])
        wanted = step < last  # the shapes at least, of which something stands in for it
        once = survey.steps.count(piece) == 1
        requests = self.shares.requests_of(piece) if once else []
        with self._load(piece):
            own = [renewed(request) for request in requests]
            require_ready([request.layer for request in own])
            save = Touched()
            if self._dense and wanted:
                self._give(relay, step, piece)
            rows, left, passes = self._calibrated(relay, own, save)
            if wanted and not self._dense:
                self._give(relay, step, piece)
            rows += self._uncalibrated(left, save)
            changed.update(self._changed(piece, save))
        return rows, passes

    def _give(self, relay: Relay, step: int, piece: Piece) -> None:
        """Put what a step's piece gives on the shelf, of this process's batches."""
        own = [i for i in range(len(relay.batches)) if is_own(i, self._group)]
        with errors_of_all(self._group), relay.shelf.writing(step, rank_of(self._group)) as writer:
            for batch, output in zip(own, relay.outputs(own), strict=True):
                writer.put(batch, output, piece.name)

    def _calibrated(
        self, relay: Relay, requests: Sequence[Request], save: Touched
    ) -> tuple[list[Row], list[Calibrated], int]:
        """Prune what can be calibrated: its rows, the other layers, and the passes that it took."""
        left = [
            Calibrated(one.layer, None, self.shares.hidden[one.layer.name])
            for one in requests
            if one.layer.name in self.shares.hidden
        ]
        seen = [one for one in requests if one.layer.name not in self.shares.hidden]
        if not seen:
            return [], left, 0
        calibration = replace(self.calibration, max_bytes=self._left(relay.steps[relay.at]))
        calibrator = Reaching(self.model, seen, calibration, relay)
        rows = self._rows(calibrator, save)
        return rows, left + calibrator.left, calibrator.passes

    def _uncalibrated(self, left: Iterable[Calibrated], save: Touched) -> list[Row]:
        """Prune what is pruned without inputs: after the piece has given what it gives."""
        return self._rows(left, save)

    def _rows(self, calibrated: Iterable[Calibrated], save: Touched) -> list[Row]:
        found = pruned_layers(self.plan, calibrated, self.seed, self.measure, save)
        return [Row(self._order[layer.name], row) for layer, row in found]

    def _rest(self, survey: Survey, last: int, changed: dict[str, torch.Tensor]) -> list[Row]:
        """Prune, without inputs, what no step has pruned: pieces called later, or never."""
        done = {id(piece) for piece in survey.steps[: last + 1] if survey.steps.count(piece) == 1}
        rows: list[Row] = []
        for piece in self.pieces:
            requests = [] if id(piece) in done else self.shares.requests_of(piece)
            if not requests:
                continue
            with self._load(piece):
                layers = [renewed(request).layer for request in requests]
                require_ready(layers)
                save = Touched()
                rows += self._uncalibrated(
                    [
                        Calibrated(one, None, self.shares.hidden.get(one.name, UNREACHED))
                        for one in layers
                    ],
                    save,
                )
                changed.update(self._changed(piece, save))
        return rows

    def _changed(self, piece: Piece, save: Touched) -> dict[str, torch.Tensor]:
        """The files' tensors that a piece's changed parameters become."""
        values = {name: parameter.detach() for name, _, _, parameter in piece.parameters()}
        own = {
            name: parameter.detach()
            for name, _, _, parameter in piece.parameters()
            if id(parameter) in save.seen
        }
        return self.weights.changed(own, values)
