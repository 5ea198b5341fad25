"""Rollouts: the tokens trained on are those that were sampled, and what an environment wrote is never learned."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

import lossbook as lb
from lossbook.cookbook.environments import Message, Problem, Step
from lossbook.cookbook.environments.guess_number import GuessNumber
from lossbook.cookbook.rollouts.episodes import Rollout, RolloutRunner
from lossbook.datums.errors import LossbookError, RewardError, TemplateError
from lossbook.trainer.model.tiny import build_tiny_tokenizer
from lossbook.trainer.responses import SampledSequence, SampleResponse

TOKENIZER = build_tiny_tokenizer()
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")


class Scripted:
    """A sampler that says what it is told to: answers by turn, one list a turn, an entry an episode that goes on."""

    def __init__(self, *turns: Sequence[str | list[int]]) -> None:
        self.turns = list(turns)
        self.seen: list[Any] = []

    def sample_batch(self, prompts: Any, params: Any, *, num_samples: int = 1, seeds: Any) -> Any:
        self.seen.append(([list(prompt) for prompt in prompts], list(seeds)))
        said = iter(self.turns.pop(0))
        responses = [SampleResponse([_sequence(next(said)) for _ in range(num_samples)]) for _ in prompts]
        return SimpleNamespace(result=lambda: responses)


def _sequence(answer: str | list[int]) -> SampledSequence:
    tokens = [*TOKENIZER.encode(answer), END] if isinstance(answer, str) else answer
    return SampledSequence(tokens, [-0.5] * len(tokens), "stop" if tokens[-1] == END else "length")


class Talks:
    """Two turns; the observation contains what looks like a control token."""

    def reset(self) -> Sequence[Message]:
        return [{"role": "system", "content": "rules"}, {"role": "user", "content": "first"}]

    def step(self, answer: str) -> Step:
        if answer.startswith("again"):
            return Step(reward=0.25, done=False, messages=[{"role": "user", "content": "go <|im_end|> on"}])
        return Step(reward=1.0)


def run(sampler: Any, environment: Any, group_size: int = 1, **settings: Any) -> list[Rollout]:
    runner = RolloutRunner(TOKENIZER, max_tokens=16, **settings)
    [group] = runner.run(sampler, [Problem("a problem", environment)], group_size, (0,))
    return group


def test_a_conversation_of_two_turns_is_the_templates_own_with_weight_0_where_the_environment_wrote() -> None:
    [rollout] = run(Scripted(["again"], ["done"]), Talks)
    text = TOKENIZER.decode(rollout.prompt_tokens + rollout.response_tokens)
    assert text == (
        "<|im_start|>system\nrules<|im_end|>\n<|im_start|>user\nfirst<|im_end|>\n<|im_start|>assistant\nagain<|im_end|>\n"
        "<|im_start|>user\ngo <|im_end|> on<|im_end|>\n<|im_start|>assistant\ndone<|im_end|>"
    )
    learned = [token for token, weight in zip(rollout.response_tokens, rollout.weights, strict=True) if weight]
    assert learned == [*TOKENIZER.encode("again"), END, *TOKENIZER.encode("done"), END]
    assert set(rollout.weights) == {0.0, 1.0}
    assert [lp for lp, weight in zip(rollout.sampling_logprobs, rollout.weights, strict=True) if not weight] == [
        0.0
    ] * (len(rollout.weights) - len(learned))
    assert (rollout.reward, rollout.is_truncated, rollout.answers) == (1.25, False, ["again", "done"])
    assert rollout.turn_rewards == [0.25, 1.0]
    assert rollout.states == ["system: rules\nuser: first", "user: go <|im_end|> on"]
    first, second = rollout.turn_starts
    assert (first, rollout.response_tokens[second:]) == (0, [*TOKENIZER.encode("done"), END])


def test_an_environment_may_name_the_state_and_a_cut_episode_has_as_many_as_answers() -> None:
    class Named(Talks):
        def step(self, answer: str) -> Step:
            return replace(super().step(answer), state=f"after {answer}")

    assert run(Scripted(["again"], ["done"]), Named)[0].states == ["system: rules\nuser: first", "after again"]
    [cut] = run(Scripted(["again"]), Named, max_length=5)
    assert (len(cut.states), cut.turn_rewards, cut.is_truncated) == (1, [0.25], True)


def test_control_tokens_that_an_environment_says_are_text() -> None:
    """Else an observation could end the environment's turn and speak for the assistant."""
    [rollout] = run(Scripted(["again"], ["done"]), Talks)
    written = [token for token, weight in zip(rollout.response_tokens, rollout.weights, strict=True) if not weight]
    assert written.count(END) == 1  # the template's own


def test_tokens_are_those_sampled_also_where_the_text_would_be_tokenised_otherwise() -> None:
    """Bytes that are no UTF-8 decode to a replacement character, which encodes as three other bytes."""
    broken = [0xC3, 0x28, END]
    [rollout] = run(Scripted([broken]), Talks)
    assert TOKENIZER.encode(rollout.answers[0]) != broken[:-1]
    assert rollout.response_tokens == broken


def test_an_answer_that_met_max_tokens_is_truncated_scored_and_ends_the_episode() -> None:
    [rollout] = run(Scripted([TOKENIZER.encode("again and again")]), Talks)
    assert (rollout.is_truncated, rollout.reward, rollout.longest_answer) == (True, 0.25, 15)
    assert rollout.weights == [1.0] * 15


def test_an_episode_that_reached_max_length_gets_no_turn_more_and_ends_with_what_the_policy_wrote() -> None:
    [rollout] = run(Scripted(["again"]), Talks, max_length=80)
    assert (rollout.is_truncated, rollout.weights) == (True, [1.0] * 6)


def test_only_episodes_that_go_on_are_asked_again_and_each_with_a_seed_of_its_own() -> None:
    sampler = Scripted(["again", "done", "again"], ["done", "done"])
    rollouts = run(sampler, Talks, group_size=3)
    assert [rollout.reward for rollout in rollouts] == [1.25, 1.0, 1.25]
    (first, seeds), (second, later) = sampler.seen
    assert (len(first), len(seeds)) == (1, 1)
    assert len(second) == 2
    assert len({*seeds, *later}) == 3
    assert second[0][: len(first[0])] == first[0]


class Breaks:
    """An environment with a mistake in it."""

    def reset(self) -> Sequence[Message]:
        return [{"role": "user", "content": "?"}]

    def step(self, answer: str) -> Step:
        return [][len(answer)]


class CannotBegin(Breaks):
    """A mistake before the first message."""

    def reset(self) -> Sequence[Message]:
        raise OSError("no such server")


class SpeaksAsNobody(Breaks):
    """A role that no chat template knows."""

    def reset(self) -> Sequence[Message]:
        return [{"role": "usr", "content": "?"}]


class SaysNothing(Breaks):
    """Not done, but without a word."""

    def step(self, answer: str) -> Step:
        return Step(done=False)


class RewardsInfinitely(Breaks):
    """A reward that no mean survives."""

    def step(self, answer: str) -> Step:
        return Step(reward=float("inf"))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (Breaks, "Breaks failed on the question 'a problem' with the answer 'yes': IndexError"),
        (CannotBegin, "an episode of 'a problem' cannot begin: OSError: no such server"),
        (SpeaksAsNobody, "the beginning of 'a problem': message 0 has the unknown role 'usr'"),
        (SaysNothing, "environment of 'a problem' is not done, but its Step has no messages"),
        (RewardsInfinitely, "environment of 'a problem' returned inf as a reward"),
    ],
)
def test_a_mistake_in_an_environment_names_the_question_and_the_answer(environment: Any, message: str) -> None:
    with pytest.raises(LossbookError, match=message):
        run(Scripted(["yes"]), environment)


@pytest.mark.parametrize(
    ("role", "message"),
    [
        ("system", r"the beginning of 'a problem': the chat template leaves out the content of message 0 \(system\)"),
        ("tool", r"leaves out the content of message 2 \(tool\)"),
    ],
)
def test_what_an_environment_says_is_rendered_or_refused(role: str, message: str) -> None:
    class Looks(Talks):
        def step(self, answer: str) -> Step:
            return Step(reward=0.0, done=False, messages=[{"role": "tool", "content": "7"}])

    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "in messages", f"in messages if message['role'] != '{role}'", 1
    )
    assert tokenizer.chat_template != TOKENIZER.chat_template
    runner = RolloutRunner(tokenizer, max_tokens=16)
    with pytest.raises(TemplateError, match=message):
        runner.run(Scripted(["yes"]), [Problem("a problem", Looks)], 1, (0,))


def test_episodes_of_one_problem_that_begin_differently_are_refused() -> None:
    class Random(Talks):
        count = 0

        def reset(self) -> Sequence[Message]:
            Random.count += 1
            return [{"role": "user", "content": str(Random.count)}]

    with pytest.raises(RewardError, match="have different prompts"):
        run(Scripted(["a", "b"]), Random, group_size=2)


def test_a_real_sampler_gives_equal_episodes_for_equal_keys_and_others_for_others() -> None:
    training = lb.ServiceClient(device="cpu").create_training_client("tiny")
    sampler = training.save_weights_and_get_sampling_client()
    runner = RolloutRunner(training.get_tokenizer(), max_tokens=6)
    problems = [Problem("1", lambda: GuessNumber(1)), Problem("2", lambda: GuessNumber(2))]
    one, again, other = (runner.run(sampler, problems, 3, key) for key in ((0, 1), (0, 1), (0, 2)))
    assert one == again
    tokens = [rollout.response_tokens for groups in (one, other) for group in groups for rollout in group]
    assert len({tuple(t) for t in tokens}) == 12  # also of the two problems, whose prompts are the same
