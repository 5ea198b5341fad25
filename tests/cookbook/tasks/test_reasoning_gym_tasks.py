"""Tasks that check their own answers."""

from __future__ import annotations

import sys

import pytest

from lossbook.cookbook.tasks.reasoning_gym_tasks import Task, mean_score, question_datum, question_prompt
from lossbook.datums.errors import MissingExtraError, TaskError
from lossbook.trainer.model.tiny import build_tiny_tokenizer

ONE_WORD = {"min_words": 1, "max_words": 1}


@pytest.fixture(scope="module")
def task() -> Task:
    return Task("letter_counting", ONE_WORD, seed=0)


def test_held_out_questions_differ_from_each_other_and_from_all_trained_on(task: Task) -> None:
    held_out = task.held_out(30)
    texts = {question.text for question in held_out}
    assert len(texts) == 30
    assert texts.isdisjoint(question.text for question in task.training(300, held_out))


def test_equal_seeds_give_equal_questions(task: Task) -> None:
    assert Task("letter_counting", ONE_WORD, seed=0).held_out(5) == task.held_out(5)
    assert Task("letter_counting", ONE_WORD, seed=100).held_out(5) != task.held_out(5)


def test_the_tasks_verifier_scores_answers_and_spaces_around_them_do_not_count(task: Task) -> None:
    question = task.held_out(1)[0]
    assert task.score(question, f" {question.answer}\n") == 1.0
    assert task.score(question, "a great many") < 0.5
    assert mean_score(task, [question] * 2, [question.answer, "none at all"]) < 1.0


def test_a_misspelt_task_is_an_error_with_the_likeliest_name() -> None:
    with pytest.raises(TaskError, match=r"no task 'leter_counting'\. Did you mean 'letter_counting'"):
        Task("leter_counting")


def test_a_misspelt_setting_of_a_task_is_an_error() -> None:
    with pytest.raises(TaskError, match=r"letter_counting has no setting 'max_wrods'\. Did you mean 'max_words'"):
        Task("letter_counting", {"max_wrods": 1})


def test_a_task_with_too_few_questions_says_so() -> None:
    small = Task("leg_counting", {"min_animals": 1, "max_animals": 1, "max_instances": 1})
    with pytest.raises(TaskError, match=r"has only \d+ different questions, fewer than the 500"):
        small.held_out(500)
    everything = small.held_out(37)
    with pytest.raises(TaskError, match=r"leaves fewer than \d+ questions to train on beside 37 held out"):
        small.training(5, everything)


def test_without_reasoning_gym_the_error_is_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(MissingExtraError, match=r"needs reasoning_gym: pip install 'lossbook\[data\]'"):
        Task("letter_counting")


def test_the_datum_begins_with_the_prompt_and_learns_the_answer_and_the_end_of_the_turn(task: Task) -> None:
    tokenizer = build_tiny_tokenizer()
    question = task.held_out(1)[0]
    prompt, datum = question_prompt(question, tokenizer), question_datum(question, tokenizer)
    assert datum.model_input.to_ints()[: len(prompt)] == prompt
    weights, targets = (datum.loss_fn_inputs[key].to_numpy() for key in ("weights", "target_tokens"))
    assert tokenizer.decode(targets[weights > 0]) == question.answer + "<|im_end|>"
