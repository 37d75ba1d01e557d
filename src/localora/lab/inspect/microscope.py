"""`inspect_delta`: every layer of an adapter or a fine-tuning under the microscope, one after the other."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from localora.lab.inspect import InspectionError
from localora.lab.inspect.layer import inspect_layer
from localora.lab.inspect.report import InspectionReport
from localora.lab.inspect.source import Inspectable, open_source
from localora.placement.partition import MAX_CLUSTERS


def inspect_delta(
    source: Inspectable,
    *,
    base: str | Path | None = None,
    out: str | Path | None = None,
    rank: int = 16,
    clusters: Sequence[int] = (2, 4, 8),
    layers: Sequence[str] | None = None,
    draws: int = 4,
    seed: int = 0,
    adapter_name: str = "default",
    progress: Callable[[int, int], None] | None = None,
) -> InspectionReport:
    """What an update dW looks like, and whether it has clusters: spectra, captured energies, and nulls to refute them.

    Args:
        source: a localora or LoRA adapter (its folder, or a model that carries it); the folder of a fine-tuned
            checkpoint, with `base`; or a mapping of names to dW `(m, n)`. Adapter folders need no base model;
            checkpoints are read tensor by tensor.
        base: folder of the checkpoint that `source` was fine-tuned from.
        out: folder for `index.html`, `inspection.json` and PNG pictures; None writes nothing.
        rank: r, the budget r (m + n) at which adapters are compared, and what "rank utilisation" divides by.
            Give an adapter's own r to see how much of it is used.
        clusters: numbers of clusters K to try.
        layers: names or shell patterns, such as `*.q_proj`. None takes all, but no embeddings and output heads.
        draws: of each null; more give steadier z-scores.
        seed: of the planner's starts and the nulls. A layer's figures do not depend on which others are inspected.
        adapter_name: which adapter of a model.
        progress: told `(done, total)` after each layer.

    Raises:
        InspectionError: a source that cannot be inspected, settings that make no sense, layers that do not match.
        PlacementError, UnplacedAdapterError: a localora adapter that is damaged, or was never placed.
    """
    _check_settings(rank, clusters, draws)
    folder = None if out is None else _checked_folder(Path(out), source, base)
    start = time.monotonic()
    opened = open_source(source, base, adapter_name, layers)
    found = []
    for done, name in enumerate(opened.names, start=1):
        layer_seed = zlib.crc32(f"{seed}:{name}".encode())
        matrix = opened.load(name)
        found.append(inspect_layer(name, matrix, rank=rank, clusters=tuple(clusters), draws=draws, seed=layer_seed))
        del matrix  # before the next one is read
        if progress is not None:
            progress(done, len(opened.names))
    report = InspectionReport(
        source=opened.description,
        rank=rank,
        clusters=tuple(clusters),
        draws=draws,
        seed=seed,
        by_construction=opened.by_construction,
        layers=tuple(found),
        skipped=opened.skipped,
        seconds=time.monotonic() - start,
    )
    if folder is not None:
        from localora.lab.inspect.page import write_report

        write_report(report, folder)
    return report


def _check_settings(rank: int, clusters: Sequence[int], draws: int) -> None:
    if not isinstance(rank, int) or rank < 1:
        raise InspectionError(f"the budgeted rank must be an integer of at least 1, got {rank!r}")
    if draws < 2:
        raise InspectionError(f"a null needs at least 2 draws to have a spread, got {draws}")
    sound = isinstance(clusters, Sequence) and all(isinstance(K, int) and 2 <= K <= MAX_CLUSTERS for K in clusters)
    if not clusters or not sound:
        raise InspectionError(f"clusters must be a list of numbers in 2..{MAX_CLUSTERS}, got {clusters!r}")


def _checked_folder(out: Path, source: Inspectable, base: str | Path | None) -> Path:
    inputs = [Path(path).resolve() for path in (source, base) if isinstance(path, str | Path)]
    if out.resolve() in inputs:
        raise InspectionError(f"{out} is the folder to inspect; write the report to another one")
    if out.exists() and not out.is_dir():
        raise InspectionError(f"{out} is a file; name a folder for the report")
    return out
