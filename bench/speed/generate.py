"""Tokens a second of a compressed language model beside the dense-stored pruned one.

    spectral-engine prune MODEL -o PRUNED --method magnitude --sparsity 0.7
    spectral-engine compress PRUNED -o COMPRESSED
    python bench/speed/generate.py PRUNED COMPRESSED              needs transformers

Both generate greedily, with their cache, in turns; the ratio is the median over rounds of the ratio
within one. It is said whether they gave the same tokens.
"""

import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import spectral_engine  # noqa: F401 (opens compressed folders)


def main(
    pruned: Annotated[Path, typer.Argument(help="folder, dense-stored")],
    compressed: Annotated[Path, typer.Argument(help="folder that `compress` made of it")],
    tokens: Annotated[int, typer.Option(min=1, help="generated")] = 64,
    prompt: Annotated[int, typer.Option(min=1, help="tokens of the prompt, any")] = 8,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Print a line for each round, and the medians."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 (not installed everywhere)

    load: Any = AutoModelForCausalLM.from_pretrained
    models = [load(folder, dtype=torch.float32).eval() for folder in (pruned, compressed)]
    inputs = torch.arange(1000, 1000 + prompt).remainder(models[0].config.vocab_size)[None]

    def run(model: Any) -> tuple[float, torch.Tensor]:
        start = time.perf_counter()
        with torch.no_grad():
            found = model.generate(
                inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
                attention_mask=torch.ones_like(inputs), pad_token_id=0,
            )  # fmt: skip
        return time.perf_counter() - start, found

    for model in models:
        run(model)  # compiles
    spent = []
    for _ in range(rounds):
        (dense, expected), (own, found) = map(run, models)
        spent.append((dense, own))
        same = "the same tokens" if torch.equal(found, expected) else "OTHER TOKENS"
        typer.echo(f"dense {tokens / dense:.1f}/s, compressed {tokens / own:.1f}/s, {same}")
    ratio = statistics.median(dense / own for dense, own in spent)
    typer.echo(f"compressed {ratio:.2f} x as fast (median of {rounds})")


if __name__ == "__main__":
    typer.run(main)
