"""What surgery finds in every model of timm: each is planned on the meta device, without weights.

    OMP_NUM_THREADS=1 nice -n 19 python benchmarks/census.py --out census.jsonl
    python benchmarks/census.py --models 'iformer*' --models 'squeezenet*' --out census.jsonl

One model of each family comes first, so that ``--limit 100`` is a fair sample; all 1,371 take about half an hour on one
core. Each model adds one line to the file; the same command goes on where it was stopped. A family is the file of timm
that holds it. The summary counts, for each family, what is converted by role, and why the other 1×1 convolutions are
not; failures come last, and then the exit status is 1.
"""

import argparse
import fnmatch
import itertools
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import timm
import torch
from tqdm import tqdm

import surgery
from surgery.core.table import table

_NUMBERS = re.compile(r"\b\d+(?: to \d+)? (?=channels|groups)")
REASONS_SHOWN = 4


@dataclass(frozen=True)
class Record:
    """What was found in one model: sites by role, passed-over convolutions by reason; or why its plan failed."""

    model: str
    family: str
    sites: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    failure: str = ""
    seconds: float = 0.0


def census(model: str, family: str) -> Record:
    """Plan one model with the default arguments."""
    start = time.perf_counter()
    try:
        with torch.device("meta"):
            network = timm.create_model(model)
        plan = surgery.plan(network)
    except Exception as error:  # a failure of any model is a finding, and the others go on
        line = str(error).partition("\n")[0]
        return Record(model, family, failure=f"{type(error).__name__}: {line}", seconds=_since(start))
    sites = Counter(edit.role for edit in plan.sites)
    reasons = Counter(_NUMBERS.sub("", item.reason) for item in plan.skipped)
    return Record(model, family, dict(sites), dict(reasons), seconds=_since(start))


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 2)


def models(patterns: list[str]) -> list[tuple[str, str]]:
    """(model, family) of all that match a pattern, the first of each family before all seconds."""
    families = {family: timm.list_models(module=family) for family in timm.list_modules()}
    rounds = itertools.zip_longest(*([(name, family) for name in names] for family, names in families.items()))
    pairs = (pair for turn in rounds for pair in turn if pair is not None)
    return [pair for pair in pairs if any(fnmatch.fnmatchcase(pair[0], pattern) for pattern in patterns)]


def records(file: Path) -> Iterator[Record]:
    """The lines of a file; a last one that a stop cut short is passed over, since its model is planned again."""
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            yield Record(**json.loads(line))
        except (json.JSONDecodeError, TypeError):
            print(f"{file}: a line that is no record is passed over: {line[:60]}", file=sys.stderr)


def summary(records_found: Iterable[Record]) -> str:
    """A row per family, then the failures."""
    by_family = sorted(records_found, key=lambda record: record.family)
    groups = itertools.groupby(by_family, key=lambda record: record.family)
    rows = [_row(family, list(members)) for family, members in groups]
    lines = [table(("family", "models", "with sites", "sites", "passed over"), rows, right=(1, 2))]
    totals = _total(record.sites for record in by_family)
    lines.append(f"{len(by_family)} models, {sum(bool(r.sites) for r in by_family)} with sites: {_counted(totals)}")
    lines += [f"failed: {record.model}: {record.failure}" for record in by_family if record.failure]
    return "\n".join(lines)


def _row(family: str, members: list[Record]) -> tuple[str, ...]:
    with_sites = sum(bool(member.sites) for member in members)
    sites = _counted(_total(member.sites for member in members))
    reasons = _counted(_total(member.reasons for member in members), REASONS_SHOWN)
    return family, str(len(members)), str(with_sites), sites, reasons


def _total(counts: Iterable[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return total


def _counted(counts: Counter[str], most: int | None = None) -> str:
    text = ", ".join(f"{count} × {name}" for name, count in counts.most_common(most))
    return text + (", …" if most is not None and len(counts) > most else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", action="append", metavar="PATTERN", help="shell-style; may be repeated; default: *")
    parser.add_argument("--limit", type=int, help="plan at most so many models that the file does not have yet")
    parser.add_argument("--out", type=Path, default=Path("census.jsonl"), help="file of JSON lines to go on with")
    args = parser.parse_args()
    chosen = models(args.models or ["*"])
    if not chosen:
        parser.error(f"--models {' '.join(args.models)}: no model of timm {timm.__version__} has such a name")
    done = {record.model for record in records(args.out)}
    left = [pair for pair in chosen if pair[0] not in done][: args.limit]
    written = args.out.read_bytes() if args.out.exists() else b""
    with args.out.open("a") as file:
        if written and not written.endswith(b"\n"):  # a stop cut the last line short
            file.write("\n")
        for name, family in tqdm(left, unit="model", disable=None):
            file.write(json.dumps(asdict(census(name, family))) + "\n")
            file.flush()
    names = {name for name, _ in chosen}
    selected = {record.model: record for record in records(args.out) if record.model in names}.values()
    print(summary(selected))
    return int(any(record.failure for record in selected))


if __name__ == "__main__":
    sys.exit(main())
