"""
check_loss names the law that a mistake breaks, and hands back the smallest example
===================================================================================

Two mistakes that train without an error message: a mean inside a loss, and a baseline taken from whatever tokens are
in the same call. Both make a gradient depend on how a batch was cut. `check_loss` draws data from a function's
signature, holds the function to the laws that every loss must obey, and shrinks a failure to the smallest data that
shows it.
"""

from torch import Tensor

from lossbook.testing import check_loss


def mean_inside(logprobs: Tensor) -> Tensor:
    """-logprobs / n: it divides by the tokens of its call, and the reduction divides once more."""
    return -logprobs / max(1, logprobs.numel())


def own_baseline(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """REINFORCE, minus the mean advantage of the call, declared as a loss per token."""
    return -(advantages - advantages.mean()) * logprobs


def right(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """REINFORCE."""
    return -advantages * logprobs


# Without `checks` all of them run, about twenty.
laws = ("law_micro_batches", "law_ranks")
reports = {
    loss.__name__: check_loss(loss, on_fail="report", checks=laws, max_examples=40)
    for loss in (mean_inside, own_baseline, right)
}
for name, report in reports.items():
    print(f"{name}: {'passes' if report.passed else report.failures[0].message}\n")

# %%
# A failure comes with source code that reproduces it: a few tokens are enough.

print(reports["own_baseline"]["law_micro_batches"].reproducer)

assert reports["right"].passed
assert all(len(reports[name].failures) == len(laws) for name in ("mean_inside", "own_baseline"))
