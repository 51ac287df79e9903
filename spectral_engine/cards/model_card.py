"""README.md of a pruned or compressed Hugging Face folder: metadata for the hub, and a section."""

import html
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectral_engine._util.checks import file_path, number
from spectral_engine.cards.front_matter import (
    Card,
    card_text,
    read_card,
    with_entry,
    with_section,
    with_tags,
)
from spectral_engine.checkpoints.atomic import replacing_file
from spectral_engine.checkpoints.config import CONFIG, model_config
from spectral_engine.checkpoints.sparse.company import QUANT_METHOD
from spectral_engine.compression.report import CompressReport
from spectral_engine.pruning.report import PruneReport

README = "README.md"
#: A longer README is no model card.
_MOST_BYTES = 2**24
#: The entry and the section of each report.
_PRUNED, _COMPRESSED = "spectral_engine_pruned", "spectral_engine_compressed"


def write_model_card(
    folder: str | os.PathLike[str],
    report: PruneReport | CompressReport,
    *,
    base_model: str | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Path:
    """Write what was done to a folder's weights into its README.md, or add it to the one there.

    Into the metadata go `library_name` and `base_model`, where it has none, the tags "pruned" or
    "compressed" and "spectral-engine", and an entry of ours with sparsity, recipe, calibration and
    what was measured; into the text a section. A second call replaces both and leaves all else.

    Args:
        folder: as `prune_file` or `compress_file` wrote it.
        report: what that gave.
        base_model: the model that was pruned, as the hub names it, in the place of what the card
            may say; None leaves that.
        metrics: figures of your own, by name, such as {"perplexity": 18.2}.

    Returns:
        The path of the card.

    Raises:
        TypeError, ValueError, OSError: name the argument or the file, what was expected and what
            came; the card is left as it was.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> torch.save({"a.weight": torch.randn(8, 6)}, folder / "dense.pt")
        >>> report = se.prune_file(folder / "dense.pt", folder / "pruned.pt", "magnitude", 0.75)
        >>> card = se.write_model_card(folder, report, base_model="org/model")
        >>> print(card.read_text().splitlines()[2])
        base_model: "org/model"
    """
    path = file_path("folder", folder)
    if not path.is_dir():
        raise ValueError(f"folder: expected a folder; got {path}")
    if not isinstance(report, PruneReport | CompressReport):
        raise TypeError(
            f"report: expected a PruneReport or a CompressReport; got {type(report).__name__}"
        )
    if base_model is not None and not isinstance(base_model, str):
        raise TypeError(f"base_model: expected a string or None; got {type(base_model).__name__}")
    figures = _checked(metrics)
    front, body = read_card(_text_of(path / README))
    library = "transformers" if (path / CONFIG).is_file() else "spectral-engine"
    front = with_entry(front, "library_name", library, replace=False)
    if base_model is not None:
        front = with_entry(front, "base_model", base_model, replace=True)
    pruned = isinstance(report, PruneReport)
    front = with_tags(front, ["pruned" if pruned else "compressed", "spectral-engine"])
    name = _PRUNED if pruned else _COMPRESSED
    facts = _pruned(report) if isinstance(report, PruneReport) else _compressed(report)
    facts |= {"metrics": figures} if figures else {}
    front = with_entry(front, name, facts, replace=True)
    title = "Pruned" if pruned else "Compressed"
    body = with_section(body, name, _section(path, title, facts))
    with replacing_file(path / README, force=True) as file:
        file.write(card_text(Card(front, body)).encode())
    return path / README


def _text_of(path: Path) -> str:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return ""
    if size > _MOST_BYTES:
        raise ValueError(
            f"{path}: expected a model card of at most {_MOST_BYTES} bytes; got {size}"
        )
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8; got another encoding") from error


def _checked(metrics: Any) -> dict[str, float]:
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics: expected names with figures; got {type(metrics).__name__}")
    for name in metrics:
        if not isinstance(name, str):
            raise TypeError(f"metrics: expected names as strings; got {type(name).__name__}")
    return {name: float(number(f"metrics: {name}", value)) for name, value in metrics.items()}


def _pruned(report: PruneReport) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "sparsity": round(report.sparsity, 6),
        "recipe": "; ".join(map(repr, report.recipes)),
        "seed": report.seed,
        "weights": len(report.layers),
        "entries": report.size,
        "nonzero": report.nnz,
        "left_alone": len(report.skipped),
        "calibration": _calibration(report),
    }
    for what in ("spectral", "frobenius", "singular_values"):
        found = [getattr(layer, what) for layer in report.layers]
        errors = [error for error in found if error is not None]
        if errors:
            facts[f"{what}_error_median"] = round(statistics.median(errors), 6)
            facts[f"{what}_error_largest"] = round(max(errors), 6)
    return facts


def _calibration(report: PruneReport) -> str:
    if report.calibration is None:
        return "none"
    seen = [layer.samples for layer in report.layers if layer.samples is not None]
    if not seen:
        return "inputs that reached no layer"
    fewest, most = min(seen), max(seen)
    return f"{fewest} inputs a layer" if fewest == most else f"{fewest} to {most} inputs a layer"


def _compressed(report: CompressReport) -> dict[str, Any]:
    return {
        "weights": len(report.weights),
        "left_dense": len(report.skipped),
        "bytes": report.bytes,
        "dense_bytes": report.dense_bytes,
        "ratio": round(report.ratio, 6),
    }


def _section(path: Path, title: str, facts: Mapping[str, Any]) -> str:
    """A table of the facts, and how the folder is loaded where that takes another line."""
    metrics = facts.get("metrics", {})
    rows = {**{key: value for key, value in facts.items() if key != "metrics"}, **metrics}
    lines = [f"## {title} with spectral-engine", "", "| | |", "|---|---|"]
    lines += [f"| {_cell(key.replace('_', ' '))} | {_cell(value)} |" for key, value in rows.items()]
    if model_config(path).quantisation == QUANT_METHOD:
        lines += [
            "", "```python", "import spectral_engine", "from transformers import AutoModel", "",
            'model = AutoModel.from_pretrained("this folder")', "```",
        ]  # fmt: skip
    return "\n".join(lines)


def _cell(value: Any) -> str:
    """A value as text that neither Markdown nor HTML takes for its own."""
    text = " ".join(html.escape(str(value), quote=False).split())
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("`", "\\`")
