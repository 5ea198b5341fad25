"""Where the prompts and rewards of reinforcement learning come from: tasks, answers, functions and environments.

protocol.py       `Environment`: reset and step over messages; `Problem`: what episodes of it begin from
rewards.py        single answers scored by a function `reward(answer, row) -> float`
math_answers.py   single answers compared with the right one by math-verify
guess_number.py   an environment of many turns
sources.py        the problems that a configuration names
"""

from .protocol import Environment, Message, Problem, Step
from .sources import ENVIRONMENTS, REWARDS, ProblemSettings, load_problems

__all__ = [
    "ENVIRONMENTS",
    "REWARDS",
    "Environment",
    "Message",
    "Problem",
    "ProblemSettings",
    "Step",
    "load_problems",
]
