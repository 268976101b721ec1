"""``optillm train-router RESULTS… --out FILE``: a model for the router, from results of techniques."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from optillm.core.frozen import to_json
from optillm.core.routing.model import render
from optillm.evals.routing.results import Result, ResultsError, read
from optillm.protocol.errors import MissingExtra

if TYPE_CHECKING:
    from optillm.evals.routing.train import Trained


def train_router(argv: Sequence[str]) -> int:
    """Train, write the model, and print how well it chooses on held-out questions.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    parser = argparse.ArgumentParser(
        prog="optillm train-router",
        description="Train the router on results of techniques; see docs/router.md for their format.",
    )
    parser.add_argument("results", metavar="RESULTS", type=Path, nargs="+", help="JSON Lines of results")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help="the model, for --router-model"
    )
    parser.add_argument("--report", metavar="FILE", type=Path, help="the report, as JSON")
    parser.add_argument(
        "--unit", choices=("calls", "tokens", "cost"), default="calls", help="what costs are counted in"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the splits")
    options = parser.parse_args(list(argv))
    try:
        results = read(options.results)
        trained = _train(results, options)
        options.out.write_bytes(render(trained.model))
        if options.report:
            options.report.write_bytes(to_json(trained.report.to_dict()) + b"\n")
    except ResultsError as error:
        print(f"optillm train-router: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"optillm train-router: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    from optillm.evals.routing.train import rendered

    print(rendered(trained.report))
    return 0


def _train(results: Sequence[Result], options: argparse.Namespace) -> Trained:
    try:
        from optillm.evals.routing.train import train
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("numpy", "scipy", "sklearn", "threadpoolctl"):
            raise
        raise MissingExtra("train", "train-router") from None
    today = datetime.now(UTC).date().isoformat()
    return train(results, when=today, unit=options.unit, seed=options.seed)
