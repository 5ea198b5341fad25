"""Mathematical answers, compared by math-verify: 1/2, 0.5 and \\frac{1}{2} are one answer.

math-verify by Hugging Face, https://github.com/huggingface/Math-Verify (Apache-2.0), takes the last expression in a text,
LaTeX or plain, parses it with SymPy and compares.

A model may answer 9^9^9^9, which SymPy would evaluate forever. So answers are compared in a separate process, which is
killed after a time limit: neither an alarm nor a thread can interrupt one long multiplication.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...datums.errors import RewardError
from ..extras import require
from .rewards import shortened

#: Limits for comparing an answer, which usually takes milliseconds. The memory limit works on Unix only.
SECONDS, GIBIBYTES = 10.0, 4
#: Prints "up", then answers each line [right, answer] with true or false.
WORKER = """
import json, logging, sys
logging.disable(logging.WARNING)
from math_verify import parse, verify
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) << 30,) * 2)
except ImportError:
    pass
print("up", flush=True)
for line in sys.stdin:
    right, answer = json.loads(line)
    try:
        equal = verify(*(parse(text, parsing_timeout=None) for text in (right, answer)), timeout_seconds=None)
    except (Exception, MemoryError):
        equal = False
    print(json.dumps(bool(equal)), flush=True)
"""


class MathReward:
    """1 where the answer's last expression equals `row["answer"]`, else 0.

    An answer without an expression, or one that takes more than `seconds` to compare, gets 0. Raises MissingExtraError
    without math-verify, RewardError for a row whose right answer is not an expression.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._library = require("math_verify", "data", "comparing mathematical answers")
        logging.getLogger("math_verify").setLevel(
            logging.ERROR
        )  # it warns that it has no time limit; here there is one
        self._right: dict[str, str] = {}
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="math-verify")
        self._one_at_a_time = threading.Lock()  # a thread rewards rollouts while another evaluates

    def __call__(self, answer: str, row: Mapping[str, Any]) -> float:
        """The reward of an answer, 0 or 1."""
        right = self.expression(str(row["answer"]))
        with self._one_at_a_time:
            return float(self._compare(right, answer))

    def expression(self, text: str) -> str:
        """The right answer in a form that math-verify can read."""
        if text not in self._right:
            is_words = len(text) > 1 and text.replace(" ", "").isalpha()  # "cat" would be c times a times t
            forms = [text] if is_words else [text, f"${text}$"]  # LaTeX may come without its dollar signs
            # Its time limits are alarms, which only a main thread can set; parsing alone evaluates nothing.
            readable = [form for form in forms if self._library.parse(form, parsing_timeout=None)]
            if not readable:
                raise RewardError(
                    f"math-verify finds no expression in the answer {shortened(text)}. Write plain numbers, or LaTeX between "
                    "dollar signs; for other answers use a reward function of your own: --reward module:function"
                )
            self._right[text] = readable[0]
        return self._right[text]

    def _compare(self, right: str, answer: str) -> bool:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([right, answer]) + "\n")
        process.stdin.flush()
        line = self._reader.submit(process.stdout.readline)
        try:
            verdict = line.result(self._seconds)
        except TimeoutError:
            verdict = ""
        if not verdict:  # out of time, or the process died
            _end(process)
            self._process = None
        return bool(verdict) and json.loads(verdict)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            command = [sys.executable, "-c", WORKER, str(GIBIBYTES)]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
            )
            assert process.stdout is not None
            if process.stdout.readline() != "up\n":
                _end(process)
                raise RewardError(
                    "math-verify does not start in a separate process; try: python -c 'import math_verify'"
                )
            weakref.finalize(self, _end, process)
            self._process = process
        return self._process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()  # waits, and closes the pipes
