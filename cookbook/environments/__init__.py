"""Prompts and rewards of reinforcement learning: tasks, right answers, reward functions and environments.

protocol.py       `Environment`: reset and step over messages; `Problem`: the start of its episodes
rewards.py        single answers scored by a function `reward(answer, row) -> float`
confined_reward.py  such a function in a process of its own
math_answers.py   single answers compared with the right one by math-verify
guess_number.py   an environment of several turns
sources.py        the problems of a configuration
"""

from ..settings.problems import ProblemSettings
from .protocol import Environment, Message, Problem, Step
from .sources import ENVIRONMENTS, REWARDS, load_problems

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
