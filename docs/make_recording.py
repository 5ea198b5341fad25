"""docs/images/terminal.svg: what a terminal shows while the commands of `SESSION` are typed and run.

    make recording

termtosvg plays them in a terminal of its own, in a new folder, and draws it. What lasts longer than four seconds is cut to that.
"""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "terminal.svg"
COLUMNS, ROWS = 100, 30
#: The commands, each with seconds to read what it printed.
SESSION = (
    ("lossbook losses new my_loss", 3),
    ("lossbook losses check my_loss:my_loss", 3),
    (
        "lossbook train sft --task letter_counting --steps 12 --batch-size 4 "
        "--out runs/sweep --sweep loss=cross_entropy,my_loss:my_loss seed=0,1,2",
        6,
    ),
)
#: Types a line a letter at a time, runs it, and waits for the reader. Plays in the terminal that is recorded.
PLAYER = """
import json, subprocess, sys, time
for command, seconds in json.loads(sys.argv[1]):
    print("$ ", end="", flush=True)
    for letter in command:
        print(letter, end="", flush=True)
        time.sleep(0.03)
    print()
    subprocess.run(command, shell=True, check=True)
    time.sleep(seconds)
"""


def main() -> None:
    recorder = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as folder:
        player = shlex.join([sys.executable, "-c", PLAYER, json.dumps(SESSION)])
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        command = [
            str(recorder),
            str(PICTURE),
            "-c",
            player,
            "-g",
            f"{COLUMNS}x{ROWS}",
            "-D",
            "3000",
            "-m",
            "40",
            "-M",
            "4000",
        ]
        _, keyboard = pty.openpty()  # the recorder stops at the end of its input
        environment = {**os.environ, "PATH": path, "TERM": "xterm-256color"}
        subprocess.run(command, cwd=folder, check=True, env=environment, stdin=keyboard)
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
