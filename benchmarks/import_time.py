"""How much longer `import lossbook` takes than `import torch`: `python benchmarks/import_time.py [--runs 9]`.

Each run is a fresh interpreter that times its own imports; the two kinds alternate, so that a slow spell of the
machine falls on both. Prints the medians in seconds and their difference. The aim is below 0.3 s.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

TIMED = "from time import perf_counter; start = perf_counter(); {imports}; print(perf_counter() - start)"


def seconds(imports: str) -> float:
    """Seconds that a fresh interpreter takes for an import statement."""
    command = [sys.executable, "-c", TIMED.format(imports=imports)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main(runs: int = 9) -> float:
    """The median extra seconds of `import lossbook` over `import torch`, over `runs` alternating pairs."""
    seconds("import torch, lossbook")  # fills the file cache
    pairs = [(seconds("import torch"), seconds("import torch, lossbook")) for _ in range(runs)]
    extra = statistics.median(ours - torch for torch, ours in pairs)
    torch, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"import torch {torch:.2f} s, import torch, lossbook {ours:.2f} s, extra {extra:.2f} s (medians of {runs})")
    return extra


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="How much longer `import lossbook` takes than `import torch`.")
    parser.add_argument("--runs", type=int, default=9, help="pairs of interpreters to time")
    main(parser.parse_args().runs)
