"""Episodes of a policy in environments, as tokens: training uses the sampled tokens, never text tokenized again.

All episodes of a step take their turns together, so that the sampler decodes them as one batch. The samples depend on
the weights and on (seed, step, attempt, problem, sample, turn) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from ...datums.chat.messages import check_messages
from ...datums.chat.omissions import check_rendered, with_readable_arguments
from ...datums.chat.template import ChatTemplate, decoded
from ...datums.errors import LossbookError, RewardError, TemplateError, located
from ...datums.types import ModelInput, SamplingParams
from ..environments.protocol import Environment, Message, Problem
from ..environments.rewards import checked_number, shortened

if TYPE_CHECKING:
    from ...trainer.responses import SampledSequence, SampleResponse

T_co = TypeVar("T_co", covariant=True)


class Awaited(Protocol[T_co]):
    """What a call returns at once; `result` waits for it."""

    def result(self) -> T_co: ...


class Sampler(Protocol):
    """What rollouts ask of a sampler: `SamplingClient`, or `ServerSampler`."""

    def sample_batch(
        self,
        prompts: Sequence[ModelInput | Sequence[int]],
        sampling_params: SamplingParams | Any = None,
        *,
        num_samples: int = 1,
        seeds: Sequence[int] | None = None,
    ) -> Awaited[list[SampleResponse]]:
        """`num_samples` continuations of each prompt, with seeds of their own."""
        ...


class Policy(Protocol):
    """What gives samplers of the weights in training: `TrainingClient`, or `ServedPolicy`."""

    def save_weights_and_get_sampling_client(self) -> Sampler:
        """A sampler of the current weights."""
        ...


#: Stands for an answer while the text after it is rendered.
_PLACEHOLDER = "PLACEHOLDER-OF-AN-ANSWER"


@dataclass(frozen=True)
class Rollout:
    """A finished episode.

    problem            the problem's text
    prompt_tokens      [P] ids of the first messages
    response_tokens    [R] ids of the rest: the sampled answers, and the environment's messages between them
    sampling_logprobs  [R] nats, the sampler's; 0 on the environment's tokens
    weights            [R] 1 on the policy's tokens, 0 on the environment's
    reward             sum over the answers, unitless
    is_truncated       whether the last answer reached max_tokens, or the episode max_length
    longest_answer     in tokens
    answers            the answers' texts
    turn_starts        where in the response each answer begins, in tokens
    turn_rewards       of each answer, unitless
    states             what identifies where the episode was before each answer
    """

    problem: str
    prompt_tokens: list[int]
    response_tokens: list[int]
    sampling_logprobs: list[float]
    weights: list[float]
    reward: float
    is_truncated: bool
    longest_answer: int
    answers: list[str]
    turn_starts: list[int] = field(default_factory=list)
    turn_rewards: list[float] = field(default_factory=list)
    states: list[str] = field(default_factory=list)

    @property
    def sampled_tokens(self) -> int:
        """The number of the policy's tokens."""
        return int(sum(self.weights))


@dataclass(frozen=True)
class RolloutRunner:
    """Runs episodes with a sampler.

    max_tokens   most tokens in an answer
    max_length   an episode of this many tokens gets no further turn; None: no limit
    temperature  of sampling; 0: greedy
    """

    tokenizer: Any
    max_tokens: int
    max_length: int | None = None
    temperature: float = 1.0

    def run(
        self, sampler: Sampler, problems: Sequence[Problem], group_size: int, key: Sequence[int]
    ) -> list[list[Rollout]]:
        """Run `group_size` episodes of each problem. Equal weights, problems and `key` (integers >= 0) give equal ones.

        Raises RewardError for a mistake of an environment or a reward function, with question and answer.
        """
        template = ChatTemplate(self.tokenizer)
        groups = [[_Episode(problem, template) for _ in range(group_size)] for problem in problems]
        prompts = [_common_prompt(group) for group in groups]
        params = SamplingParams(max_tokens=self.max_tokens, temperature=self.temperature)
        seeds = [_seed(*key, at) for at in range(len(groups))]
        responses = sampler.sample_batch(prompts, params, num_samples=group_size, seeds=seeds).result()
        for group, response in zip(groups, responses, strict=True):
            for episode, sequence in zip(group, response.sequences, strict=True):
                episode.take(sequence, self.max_length)
        episodes = [episode for group in groups for episode in group]
        turn = 1
        while going_on := [(at, episode) for at, episode in enumerate(episodes) if not episode.is_over]:
            seeds = [_seed(*key, at, turn) for at, _ in going_on]
            responses = sampler.sample_batch([episode.tokens for _, episode in going_on], params, seeds=seeds).result()
            for (_, episode), response in zip(going_on, responses, strict=True):
                episode.take(response.sequences[0], self.max_length)
            turn += 1
        return [[episode.rollout() for episode in group] for group in groups]


@dataclass
class _Episode:
    """An unfinished episode; `tokens` are its prompt and all that followed."""

    problem: Problem
    template: ChatTemplate
    environment: Environment = field(init=False)
    tokens: list[int] = field(init=False)
    logprobs: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    turn_starts: list[int] = field(default_factory=list)
    turn_rewards: list[float] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    is_over: bool = False
    is_truncated: bool = False
    longest_answer: int = 0

    def __post_init__(self) -> None:
        try:
            self.environment = self.problem.begin()
            messages = with_readable_arguments(self.template, check_messages(self.environment.reset()))
            check_rendered(self.template, messages, learned=())
        except LossbookError as error:
            raise located(error, f"the beginning of {shortened(self.problem.text)}") from None
        except Exception as error:
            place = f"an episode of {shortened(self.problem.text)} cannot begin"
            raise RewardError(f"{place}: {type(error).__name__}: {error}") from error
        self.states.append(_text(messages))
        template, messages = self.template.guarded(messages)
        self.tokens = template.tokens(messages, add_generation_prompt=True)

    def take(self, sequence: SampledSequence, max_length: int | None) -> None:
        """Append an answer and the environment's reply."""
        has_stopped = sequence.stop_reason == "stop"
        text_tokens = sequence.tokens[:-1] if has_stopped else sequence.tokens
        answer = decoded(text_tokens, self.template.tokenizer, skip_special_tokens=True)
        self.turn_starts.append(len(self.weights))
        self._extend(sequence.tokens, sequence.logprobs, 1.0)
        self.answers.append(answer)
        self.longest_answer = max(self.longest_answer, len(sequence.tokens))
        step = self._step(answer)
        who = f"environment of {shortened(self.problem.text)}"
        self.turn_rewards.append(checked_number(step.reward, who, "as a reward"))
        if not step.done and has_stopped:
            written = self._written(step.messages, sequence.tokens[-1])
            self._extend(written, [0.0] * len(written), 0.0)
            self.states.append(_text(step.messages) if step.state is None else str(step.state))
        self.is_truncated = not has_stopped or (not step.done and len(self.tokens) >= (max_length or np.inf))
        self.is_over = step.done or self.is_truncated

    def rollout(self) -> Rollout:
        """The finished episode."""
        start = len(self.tokens) - len(self.weights)
        length = len(self.weights)
        while not self.weights[length - 1]:  # drop the environment's last words where no answer followed
            length -= 1
        return Rollout(
            problem=self.problem.text,
            prompt_tokens=self.tokens[:start],
            response_tokens=self.tokens[start : start + length],
            sampling_logprobs=self.logprobs[:length],
            weights=self.weights[:length],
            reward=sum(self.turn_rewards, 0.0),
            is_truncated=self.is_truncated,
            longest_answer=self.longest_answer,
            answers=self.answers,
            turn_starts=self.turn_starts,
            turn_rewards=self.turn_rewards,
            states=self.states[: len(self.answers)],
        )

    def _step(self, answer: str) -> Any:
        try:
            return self.environment.step(answer)
        except LossbookError:
            raise
        except Exception as error:
            raise RewardError(
                f"{type(self.environment).__name__} failed on the question {shortened(self.problem.text)} with the answer "
                f"{shortened(answer)}: {type(error).__name__}: {error}"
            ) from error

    def _extend(self, tokens: Sequence[int], logprobs: Sequence[float], weight: float) -> None:
        self.tokens += tokens
        self.logprobs += logprobs
        self.weights += [weight] * len(tokens)

    def _written(self, messages: Sequence[Message], last_token: int) -> list[int]:
        """The tokens from the end of an answer to where the next one begins.

        They are rendered after a placeholder, so that the answer's sampled tokens are not tokenized again; the
        end-of-turn token is left out where the policy sampled it itself.
        """
        if not messages:
            raise RewardError(
                f"the environment of {shortened(self.problem.text)} is not done, but its Step has no messages"
            )
        before = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PLACEHOLDER}]
        template, guarded = self.template.guarded([*before, *messages])
        check_rendered(self.template, [*before, *messages], learned=())
        _, placeholder, rest = template.render(guarded, add_generation_prompt=True).rpartition(_PLACEHOLDER)
        if not placeholder:
            raise TemplateError(
                "the chat template leaves out earlier answers, so it cannot render episodes of several turns"
            )
        tokens = template.encode(rest)
        return tokens[1:] if tokens[:1] == [last_token] else tokens


def _text(messages: Sequence[Message]) -> str:
    """What messages say, as the name of a state."""
    return "\n".join(f"{one['role']}: {one.get('content')}" for one in messages)


def _common_prompt(group: Sequence[_Episode]) -> list[int]:
    """The prompt that all episodes of a problem share. Raises RewardError where prompts differ."""
    first = group[0].tokens
    if any(episode.tokens != first for episode in group):
        raise RewardError(
            f"episodes of {shortened(group[0].problem.text)} have different prompts, so their rewards cannot be compared: "
            "an environment must draw everything random from its seed"
        )
    return first


def _seed(*key: int) -> int:
    """A different seed for each key."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
