"""Mathematical answers, compared by math-verify: 1/2, 0.5 and \\frac{1}{2} are one answer.

math-verify by Hugging Face, https://github.com/huggingface/Math-Verify (Apache-2.0), parses LaTeX with SymPy and compares.
`final_answers.py` gives it both answers whole. Two answers that are the same text are equal; words are compared as text.

A model may answer 9^9^9^9, which SymPy would evaluate forever. So answers are compared in a separate process, which is
killed after a time limit: neither an alarm nor a thread can interrupt one long multiplication.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...datums.errors import RewardError
from ..extras import require
from .final_answers import Answer, count_words, final_answer, read_answer, stated_answers
from .rewards import shortened

#: Limits for comparing an answer, which usually takes milliseconds. The memory limit works on Unix only.
SECONDS, GIBIBYTES = 10.0, 4
#: A row's answer of more words than this is prose, which nobody repeats word for word.
MOST_WORDS = 6
#: Prints "up", then answers each line [right, answer, whether the answer is one expression] with true or false. An
#: expression is read whole or not at all, and a letter behind a number is a variable, not a unit.
WORKER = """
import json, logging, sys
logging.disable(logging.WARNING)
from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) << 30,) * 2)
except ImportError:
    pass
no_units = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
whole = [LatexExtractionConfig(normalization_config=no_units, boxed_match_priority=-1)]
def read(latex):
    return parse(f"${latex}$", whole, "no_fallback", "first_match", parsing_timeout=None)
print("up", flush=True)
for line in sys.stdin:
    right, answer, is_whole = json.loads(line)
    try:
        read_answer = read(answer) if is_whole else parse(answer, parsing_timeout=None)
        equal = verify(read(right), read_answer, timeout_seconds=None)
    except (Exception, MemoryError):
        equal = False
    print(json.dumps(bool(equal)), flush=True)
"""


class MathReward:
    """1 where the answer's final answer equals `row["answer"]`, else 0.

    The final answer is in the last box, after `####` or "answer is", the whole text, or its last expression. A text
    without one, or one that takes more than `seconds` to compare, gets 0. Raises MissingExtraError without math-verify,
    RewardError for a row whose right answer is empty or prose.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        require("math_verify", "data", "comparing mathematical answers")
        self._right: dict[str, Answer] = {}
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="math-verify")
        self._one_at_a_time = threading.Lock()  # a thread rewards rollouts while another evaluates

    def __call__(self, answer: str, row: Mapping[str, Any]) -> float:
        """The reward of an answer, 0 or 1."""
        right = self.right_answer(str(row["answer"]))
        if any(given is not None and given.text == right.text for given in map(read_answer, stated_answers(answer))):
            return 1.0
        final = final_answer(answer)
        if final is None:  # mathematics in prose: math-verify finds the last
            return float(right.latex is not None and self._compare(right.latex, answer, is_whole=False))
        given = read_answer(final)
        if given is None or given.latex is None or right.latex is None:
            return 0.0
        return float(self._compare(right.latex, given.latex, is_whole=True))

    def right_answer(self, text: str) -> Answer:
        """The right answer of a row. Raises RewardError for an empty one, and for prose without a final answer."""
        if text not in self._right:
            stated = final_answer(text) if "\\boxed" in text or "####" in text else text
            answer = read_answer(stated or "")
            if answer is None or (answer.latex is None and count_words(stated or "") > MOST_WORDS):
                raise RewardError(
                    f"math_verify compares final answers, and the answer {shortened(text)} is "
                    f"{'empty' if answer is None else 'prose'}. Write the final answer alone, in \\boxed{{}} or after ####; "
                    "for other answers use a reward function of your own: --reward module:function"
                )
            self._right[text] = answer
        return self._right[text]

    def _compare(self, right: str, answer: str, *, is_whole: bool) -> bool:
        with self._one_at_a_time:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps([right, answer, is_whole]) + "\n")
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
