"""How much longer `import lossbook` takes than `import torch`: `python benchmarks/import_time.py [--rounds 9]`.

Each run is a fresh interpreter that times its own imports; the two kinds alternate, so that a slow spell of the machine
affects both. The aim is a difference of less than 0.3 s.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measuring

TIMED = "from time import perf_counter; start = perf_counter(); {imports}; print(perf_counter() - start)"


def seconds(imports: str) -> float:
    """Seconds that a fresh interpreter takes for an import statement."""
    command = [sys.executable, "-c", TIMED.format(imports=imports)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print the table, write it; returns its row."""
    parser = argparse.ArgumentParser(description="How much longer `import lossbook` takes than `import torch`.")
    parser.add_argument("--rounds", type=int, default=9, help="pairs of interpreters to time")
    parser.add_argument("--quick", action="store_true", help="one pair")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--name", default="import_time", help="of the result files")
    options = parser.parse_args(arguments)
    rounds = 1 if options.quick else options.rounds
    seconds("import torch, lossbook")  # fills the file cache
    pairs = [(seconds("import torch"), seconds("import torch, lossbook")) for _ in range(rounds)]
    torch, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    extra = statistics.median(ours - torch for torch, ours in pairs)
    rows = [{"import torch s": torch, "import torch, lossbook s": ours, "extra s": extra, "rounds": rounds}]
    print(measuring.markdown(rows))
    measuring.write(options.name, rows, measuring.folder_for(options.out, quick=options.quick))
    return rows


if __name__ == "__main__":
    main()
