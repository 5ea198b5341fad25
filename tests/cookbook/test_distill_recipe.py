"""The recipe `distill`: the student comes to say what the teacher does, in every mode, and resumes as if never stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

import lossbook as lb
from lossbook.cookbook import distill, sft
from lossbook.cookbook.distill import DistillConfig
from lossbook.cookbook.distillation.examples import DistillationExample, build_examples, prompt_of, sample_answers
from lossbook.cookbook.distillation.teachers import (
    all_tokens,
    answer_positions,
    check_same_tokenizer,
    open_teacher,
    with_candidates,
    with_teacher_advantages,
    with_teacher_logprobs,
)
from lossbook.cookbook.run.runs import read_metrics
from lossbook.cookbook.settings.written.files import read_config
from lossbook.cookbook.sft import SFTConfig
from lossbook.datums.errors import (
    ConfigError,
    DataFileError,
    LengthMismatchError,
    LossContractError,
    ModelError,
    RunError,
    UnknownLossError,
)
from lossbook.losses.math.divergences import forward_kl, reverse_kl, with_tail
from lossbook.trainer.model.tiny import VOCABULARY, build_tiny_model, build_tiny_tokenizer

ANSWERS = {"red": "rose", "blue": "sky", "green": "grass", "white": "snow", "black": "coal", "grey": "fog"}
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "distill.toml"


def hosted_forward_kl(data: Any, logprobs_list: Any) -> Any:
    """A loss in the hosted APIs' style over the teacher's candidates, never registered."""
    values = []
    for datum, logprobs in zip(data, logprobs_list, strict=True):
        rows = datum.loss_fn_inputs["weights"].to_torch() > 0
        teacher = datum.loss_fn_inputs["teacher_logprobs"].to_torch()[rows]
        present = teacher > -torch.inf
        values.append(forward_kl(with_tail(logprobs[rows], present, "bin"), with_tail(teacher, present, "bin")))
    return torch.cat(values).mean(), {"compared": float(values[0].numel())}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of six short questions with their answers."""
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [
        {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]}
        for q, a in ANSWERS.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model has half learned the answers, so that its distribution is no single token."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    sft.main(SFTConfig(data=data, out=out, steps=12, batch_size=6, learning_rate=3e-3, all_weights=True))
    return out


@pytest.fixture
def make(data: Path, teacher: Path, tmp_path: Path) -> Any:
    """A config for the tiny model, quick to train."""

    def make(out: str = "run", **changes: Any) -> DistillConfig:
        settings = {
            **{"data": str(data), "eval_data": str(data), "teacher": str(teacher), "all_weights": True},
            **{"steps": 8, "batch_size": 6, "learning_rate": 2e-3},
            **({"samples": 4, "max_tokens": 8} if changes.get("mode") == "on_policy" else {}),
        }
        return DistillConfig(**{**settings, "out": tmp_path / out, **changes})

    return make


def numbers(config: DistillConfig) -> list[dict[str, Any]]:
    """All that was recorded, apart from the speed."""
    rows = read_metrics(config.out / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows]


def examples_of(path: Path, **options: Any) -> list[DistillationExample]:
    """The examples of a file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return build_examples(rows, build_tiny_tokenizer(), **options)[0]


MODES = {
    "the teacher's top K": {"loss": "topk_forward_kl", "top_k": 5},
    "a divergence between": {"loss": "gkd", "loss_config": {"beta": 0.5}},
    "sampled answers, the teacher's logprob of each token": {"mode": "on_policy", "loss": "sampled_reverse_kl"},
    "sampled answers, the teacher's logprobs as advantages": {"mode": "on_policy", "loss": "ppo", "advantage_cap": 5.0},
    "sampled answers, the teacher's top K": {"mode": "on_policy", "loss": "topk_reverse_kl"},
}


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(mode, id=name, marks=pytest.mark.slow if name == "a divergence between" else ())
        for name, mode in MODES.items()
    ],
)
def test_the_divergence_falls_in_every_mode(make: Any, teacher: Path, mode: dict[str, Any]) -> None:
    config = make(**mode, **({"steps": 14, "max_tokens": 5} if "mode" in mode else {}))
    last = distill.main(config)
    first = numbers(config)[0]
    assert first["step"] == 0
    assert last["held_out_forward_kl"] < 0.9 * first["held_out_forward_kl"]
    assert last["held_out_reverse_kl"] < 0.9 * first["held_out_reverse_kl"]
    assert "held_out_teacher_mass" not in first  # the tiny vocabulary is compared whole
    assert {"loss", "grad_norm", "answer_length"} <= numbers(config)[1].keys()


def test_a_student_that_is_its_teacher_has_no_divergence_and_no_gradient(make: Any, teacher: Path) -> None:
    config = make(start_from=teacher, steps=1, top_k=VOCABULARY)
    distill.main(config)
    before, step, *_ = numbers(config)
    assert before["held_out_forward_kl"] == pytest.approx(0.0, abs=1e-6)
    assert before["held_out_reverse_kl"] == pytest.approx(0.0, abs=1e-6)
    assert step["loss"] == pytest.approx(0.0, abs=1e-5)
    assert step["grad_norm"] < 1e-4


def test_all_of_the_vocabulary_as_candidates_is_the_exact_divergence(data: Path, teacher: Path) -> None:
    student = lb.ServiceClient().create_training_client("tiny")
    examples = examples_of(data)
    students = [example.student for example in examples]
    compared = with_candidates(open_teacher(str(teacher), student), students, students, VOCABULARY)
    divergence = student.forward(compared, "topk_forward_kl").result().metrics["loss:sum"]

    def whole(client: lb.TrainingClient, datum: lb.Datum) -> torch.Tensor:
        """[answer, V] by the logprobs of every token as a target, without any top K."""
        n = datum.model_input.length
        every = lb.Datum(datum.model_input, {"target_tokens": torch.arange(VOCABULARY).repeat(n, 1)})
        logprobs = client.forward([every], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_torch()
        return logprobs[torch.from_numpy(answer_positions(datum))].double()

    taught = lb.ServiceClient().create_training_client("tiny")
    taught.load_state(str(teacher / "checkpoints" / "step-000012"), optimizer=False).result()
    exact = [forward_kl(whole(student, datum), whole(taught, datum)) for datum in students]
    assert divergence == pytest.approx(float(torch.cat(exact).mean()), rel=1e-4)
    assert divergence > 0.1


def test_the_expected_gradient_of_sampled_tokens_is_that_of_the_reverse_kl() -> None:
    """Each token weighted by how likely the student samples it: what the mean over samples tends to, sign included."""
    torch.manual_seed(0)
    logits, teacher = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64).log_softmax(0)
    logits.requires_grad_()
    student = logits.log_softmax(0)
    exact = torch.autograd.grad(reverse_kl(student, teacher), logits, retain_graph=True)[0]
    inputs = {
        **{"target_tokens": torch.arange(5), "weights": student.detach().exp().float()},
        **{"sampling_logprobs": student.detach().float(), "teacher_logprobs": teacher.float()},
    }
    loss, metrics = lb.get_loss("sampled_reverse_kl")([lb.Datum(lb.ModelInput.from_ints([0] * 5), inputs)], [student])
    sampled = torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(sampled, exact, atol=1e-6, rtol=1e-5)
    stepped = (logits - 0.1 * sampled).detach().log_softmax(0)
    assert float(reverse_kl(stepped, teacher)) < float(reverse_kl(student, teacher).detach())
    assert metrics


# --- a teacher with a hint ----------------------------------------------------------------------------------------------


class Echo:
    """A teacher whose logprob of a position is minus its number, and whose only candidate is its own target."""

    def __init__(self, result: Any = None) -> None:
        self.answer = result

    def forward(self, data: Any, loss: str) -> Echo:
        outputs = [{"logprobs": lb.TensorData(-np.arange(d.model_input.length, dtype=np.float32))} for d in data]
        return Echo(type("Output", (), {"loss_fn_outputs": outputs}))

    def top_logprobs(self, data: Any, k: int) -> Echo:
        tops = []
        for d in data:
            ids = d.loss_fn_inputs["target_tokens"].to_numpy()[:, None]
            tops.append(
                type("Top", (), {"tokens": ids, "logprobs": -np.arange(len(ids), dtype=np.float32)[:, None] - 1})
            )
        return Echo(tops)

    def result(self) -> Any:
        return self.answer


TOKENS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9)


def answered(prompt: list[int], answer: list[int]) -> lb.Datum:
    """A datum whose answer has weights other than 0."""
    return lb.datum_from_tokens_weights([*prompt, *answer], [0.0] * len(prompt) + [1.0] * len(answer))


@given(prompts=st.tuples(TOKENS, TOKENS), answer=TOKENS)
def test_what_a_teacher_says_is_about_the_same_token_of_the_answer_however_long_the_prompts_are(
    prompts: tuple[list[int], list[int]], answer: list[int]
) -> None:
    student, teacher = (answered(prompt, answer) for prompt in prompts)
    assert (prompt_of(student), prompt_of(teacher)) == prompts
    client: Any = Echo()
    (datum,) = with_teacher_logprobs(client, [student], [teacher])
    own, other = len(prompts[0]) - 1, len(prompts[1]) - 1  # the positions that predict the answer's first token
    numbers = datum.loss_fn_inputs["teacher_logprobs"].data
    assert numbers[own:] == [-float(other + k) for k in range(len(answer))]
    assert not any(numbers[:own])
    (datum,) = with_candidates(client, [student], [teacher], 1)
    assert datum.loss_fn_inputs["target_tokens"].to_numpy()[own:, 0].tolist() == answer
    assert datum.loss_fn_inputs["teacher_logprobs"].to_numpy()[own:, 0].tolist() == [
        -1.0 - other - k for k in range(len(answer))
    ]
    assert datum.loss_fn_inputs["weights"].data == [0.0] * own + [1.0] * len(answer)


def test_answers_that_differ_are_refused() -> None:
    client: Any = Echo()
    with pytest.raises(LengthMismatchError, match=r"pair 0: .* differ from token 1 of the answer on"):
        with_teacher_logprobs(client, [answered([1, 2], [3, 4])], [answered([1], [3, 5])])


def test_only_the_teacher_reads_the_hint_and_both_answer_with_the_same_tokens(data: Path) -> None:
    tokenizer = build_tiny_tokenizer()
    for example, answer in zip(examples_of(data, teacher_system="Say {answer}."), ANSWERS.values(), strict=True):
        own, other = (tokenizer.decode(all_tokens(datum)) for datum in (example.student, example.teacher))
        assert other == f"<|im_start|>system\nSay {answer}.<|im_end|>\n{own}"
        assert not example.is_alike
        texts = [
            tokenizer.decode(datum.loss_fn_inputs["target_tokens"].to_numpy()[answer_positions(datum)])
            for datum in (example.student, example.teacher)
        ]
        assert texts == [f"{answer}<|im_end|>"] * 2


def test_a_row_may_have_a_prompt_of_the_teachers_own_and_messages_may_be_had_too() -> None:
    rows = [
        {"prompt": "2+2=", "completion": "4", "teacher_prompt": "It is 4. 2+2="},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ]
    tokenizer = build_tiny_tokenizer()
    first, second = build_examples(rows, tokenizer)[0]
    assert [tokenizer.decode(prompt) for prompt in first.prompts] == ["2+2=", "It is 4. 2+2="]
    assert second.is_alike
    hinted = build_examples(rows[1:], tokenizer, teacher_system="{answer}{answer}")[0][0]
    assert tokenizer.decode(hinted.prompts[1]).startswith("<|im_start|>system\nbb<|im_end|>\n")


def test_a_row_too_long_for_the_student_alone_is_dropped_for_both() -> None:
    rows = [
        {"prompt": "2 + 2 = ", "completion": "4", "teacher_prompt": "2+2="},
        {"prompt": "3+3=", "completion": "6", "teacher_prompt": "3+3="},
    ]
    examples, report = build_examples(rows, build_tiny_tokenizer(), max_length=7, truncation="drop")
    assert (report.kept, report.dropped) == (1, 1)
    assert [example.is_alike for example in examples] == [True]


def test_a_system_turn_that_is_there_stays_behind_the_hint() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
    row = {"prompt": turns, "completion": [{"role": "assistant", "content": "b"}]}
    tokenizer = build_tiny_tokenizer()
    (example,) = build_examples([row], tokenizer, teacher_system="Hint.")[0]
    assert tokenizer.decode(example.prompts[1]).startswith("<|im_start|>system\nHint.\n\nBe brief.<|im_end|>\n")


def test_sampled_answers_carry_the_logprobs_they_were_sampled_with(data: Path) -> None:
    training = lb.ServiceClient().create_training_client("tiny")
    examples = examples_of(data, teacher_system="{answer}")
    sampler = training.save_weights_and_get_sampling_client()
    students, teachers = sample_answers(sampler, examples, samples=2, max_tokens=5, seed=3)
    assert len(students) == len(teachers) == 2 * len(examples)
    outputs = training.forward(students, "cross_entropy").result().loss_fn_outputs
    for i, (student, teacher, output) in enumerate(zip(students, teachers, outputs, strict=True)):
        assert prompt_of(student) == examples[i // 2].prompts[0]
        assert prompt_of(teacher) == examples[i // 2].prompts[1]
        rows = answer_positions(student)
        sampled = student.loss_fn_inputs["sampling_logprobs"].to_numpy()
        np.testing.assert_allclose(sampled[rows], output["logprobs"].to_numpy()[rows], atol=1e-5)
        assert all_tokens(student)[len(prompt_of(student)) :] == all_tokens(teacher)[len(prompt_of(teacher)) :]
    again, _ = sample_answers(sampler, examples, samples=2, max_tokens=5, seed=3)
    assert [all_tokens(datum) for datum in again] == [all_tokens(datum) for datum in students]


def test_a_model_can_be_its_own_teacher_with_a_hint(make: Any) -> None:
    """Not the answers themselves are learned: the student without the hint comes nearer to what it says with it."""
    config = make(teacher="self", teacher_system="{answer}", all_weights=False, rank=4, steps=12, learning_rate=5e-3)
    last = distill.main(config)
    assert last["held_out_forward_kl"] < 0.7 * numbers(config)[0]["held_out_forward_kl"]


def test_a_prompt_may_stand_alone_where_the_student_answers_itself(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": [{"role": "user", "content": q}]}) + "\n" for q in ANSWERS))
    last = distill.main(
        make(data=str(path), eval_data=None, mode="on_policy", loss="sampled_reverse_kl", steps=2, batch_size=3)
    )
    assert last["teacher_kl"] > 0
    with pytest.raises(DataFileError, match=r"prompts\.jsonl, line 1: the row has no 'completion'"):
        distill.main(make("other", data=str(path), eval_data=None))


def test_the_teacher_gives_a_policy_loss_its_advantages() -> None:
    inputs = {
        **{"target_tokens": [1, 2, 3], "weights": [0.0, 1.0, 1.0]},
        **{"sampling_logprobs": [0.0, -1.0, -0.5], "teacher_logprobs": [0.0, -0.25, -8.5]},
    }
    given = [lb.Datum(lb.ModelInput.from_ints([0, 1, 2]), inputs)]
    (datum,), metrics = with_teacher_advantages(given, None)
    assert datum.loss_fn_inputs["advantages"].data == [0.0, 0.75, -8.0]  # teacher less student, on the answer
    assert metrics == {"teacher_kl": (-0.75 + 8.0) / 2}
    (datum,), metrics = with_teacher_advantages(given, 2.0)
    assert datum.loss_fn_inputs["advantages"].data == [0.0, 0.75, -2.0]
    assert metrics == {"teacher_kl": (-0.75 + 8.0) / 2, "advantage_capped": 0.5}


# --- resuming ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_resumed_run_records_what_an_uninterrupted_one_does_also_where_it_is_its_own_teacher(make: Any) -> None:
    """The teacher is the student before its first step, not as it was when the run was continued."""
    settings = {
        **{"teacher": "self", "teacher_system": "{answer}", "mode": "on_policy", "loss": "sampled_reverse_kl"},
        **{
            "all_weights": False,
            "rank": 4,
            "save_every": 2,
            "eval_every": 3,
            "steps": 6,
            "batch_size": 4,
            "max_tokens": 4,
        },
    }
    whole, stopped = make("whole", **settings), make("stopped", **settings)
    distill.main(whole)
    distill.main(stopped.model_copy(update={"steps": 4}))
    with (stopped.out / "metrics.jsonl").open("a") as file:
        file.write('{"loss": 123.0, "step": 5}\n')  # as if it had been killed in its fifth step
    distill.main(stopped.model_copy(update={"resume": True}))
    rows = [row for row in numbers(stopped) if not (row["step"] == 4 and "held_out_nll" in row)]  # its last step then
    assert rows == numbers(whole)
    weights = [config.out / "adapter" / "adapter_model.safetensors" for config in (whole, stopped)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


# --- losses and mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_any_loss_over_a_teacher_can_be_named(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    name = f"{Path(__file__).stem}:hosted_forward_kl"
    config = make(loss=name, top_k=9)
    assert distill.main(config)["held_out_forward_kl"] < 0.9 * numbers(config)[0]["held_out_forward_kl"]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        pytest.param({"loss": "topk_forward_lk"}, UnknownLossError, "Did you mean 'topk_forward_kl'", id="misspelt"),
        pytest.param({"loss": "cross_entropy"}, LossContractError, "reads neither teacher_logprobs", id="no teacher"),
        pytest.param({"loss": "ppo"}, LossContractError, "answers that the student sampled: choose", id="no samples"),
        pytest.param({"advantage_cap": 5.0}, LossContractError, "topk_forward_kl does not", id="no advantages"),
        pytest.param(
            {"loss": "ppo", "mode": "on_policy", "top_k": 5},
            LossContractError,
            "leave --top-k out",
            id="K of advantages",
        ),
        pytest.param({"loss": "sampled_reverse_kl"}, LossContractError, "choose --mode on_policy", id="not sampled"),
        pytest.param(
            {"loss": "sampled_reverse_kl", "mode": "on_policy", "top_k": 5},
            LossContractError,
            "leave --top-k out",
            id="K",
        ),
    ],
)
def test_a_loss_that_cannot_be_used_ends_the_run_before_anything_is_made(
    make: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    config = make(**settings)
    with pytest.raises(error, match=message):
        distill.main(config)
    assert not config.out.exists()


def test_a_model_that_would_teach_itself_what_it_says_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError, match="nothing to learn: give the teacher a hint"):
        distill.main(make(teacher="self"))


def test_a_teacher_that_is_not_there_is_refused(make: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no file or directory"):
        distill.main(make(teacher=str(tmp_path / "nowhere")))
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    (tmp_path / "begun" / "config.json").write_text("{}")
    with pytest.raises(RunError, match="has no checkpoint"):
        distill.main(make("other", teacher=str(tmp_path / "begun")))


def test_a_teacher_with_another_tokenizer_is_refused_naming_the_first_token_that_differs() -> None:
    class Tokenizer:
        def __init__(self, words: list[str], cut: int = 1) -> None:
            self.words, self.cut = words, cut

        def get_vocab(self) -> dict[str, int]:
            return {word: i for i, word in enumerate(self.words)}

        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            return {"input_ids": [len(text[i : i + self.cut]) for i in range(0, len(text), self.cut)]}

    own = Tokenizer(["a", "b", "c"])
    check_same_tokenizer(own, Tokenizer(["a", "b", "c"]), "big")
    with pytest.raises(ModelError, match="'big' has another tokenizer: token 1 is 'b' for the student and 'x' for the"):
        check_same_tokenizer(own, Tokenizer(["a", "x", "c"]), "big")
    with pytest.raises(ModelError, match=r"token 3 is nothing for the student and 'd' .* \(3 and 4 tokens\)"):
        check_same_tokenizer(own, Tokenizer(["a", "b", "c", "d"]), "big")
    with pytest.raises(ModelError, match=r"cuts texts differently: .* token 0 differs"):
        check_same_tokenizer(own, Tokenizer(["a", "b", "c"], cut=2), "big")


@pytest.fixture
def wider(tmp_path: Path) -> Path:
    """The folder of the tiny model with a head of 8 more rows, the likeliest of all at every position."""
    folder = tmp_path / "wider"
    model, tokenizer = build_tiny_model(seed=3), build_tiny_tokenizer()
    with torch.no_grad():
        model.resize_token_embeddings(VOCABULARY + 8, mean_resizing=False)
        model.lm_head.weight[VOCABULARY:] = 0.5 * model.lm_head.weight[:8]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode",
    [
        pytest.param({}, id="its likeliest tokens"),
        pytest.param({"top_k": VOCABULARY + 100}, id="all tokens"),
        pytest.param({"mode": "on_policy", "loss": "sampled_reverse_kl"}, id="the student's own"),
    ],
)
def test_a_teacher_with_a_wider_head_teaches_the_tokens_that_both_have(
    make: Any, wider: Path, mode: dict[str, Any]
) -> None:
    last = distill.main(make(teacher=str(wider), **mode))
    assert last["held_out_forward_kl"] > 0


def test_the_candidates_of_a_teacher_with_a_wider_head_are_the_likeliest_that_the_student_has(wider: Path) -> None:
    """Their logprobs are the teacher's own."""
    teacher = lb.ServiceClient(device="cpu").create_reference_client(base_model=str(wider))
    datum = answered([1, 2, 3], [4, 5])
    (made,) = with_candidates(teacher, [datum], [datum], 5, VOCABULARY)
    ids, logprobs = (made.loss_fn_inputs[key].to_numpy()[2:] for key in ("target_tokens", "teacher_logprobs"))
    model = AutoModelForCausalLM.from_pretrained(wider)
    with torch.no_grad():
        whole = model(torch.tensor([[1, 2, 3, 4]])).logits[0, 2:].float().log_softmax(-1)
    expected = whole[:, :VOCABULARY].topk(5)
    assert np.array_equal(ids, expected.indices.numpy())
    np.testing.assert_allclose(logprobs, expected.values.numpy(), atol=1e-4)


def test_a_student_that_could_sample_what_its_teacher_lacks_is_refused_before_the_first_step(
    make: Any, wider: Path
) -> None:
    config = make(model=str(wider), teacher="tiny", mode="on_policy", loss="sampled_reverse_kl")
    with pytest.raises(ModelError, match=f"head has {VOCABULARY + 8} rows and the teacher's {VOCABULARY}"):
        distill.main(config)
    off_policy = make("off", model=str(wider), teacher="tiny")
    assert distill.main(off_policy)["held_out_forward_kl"] > 0


@pytest.mark.parametrize(
    ("row", "system", "message"),
    [
        pytest.param({"prompt": "a", "completion": "b"}, "x", "give it a 'teacher_prompt' instead", id="texts"),
        pytest.param(
            {"prompt": "a", "completion": "b", "teacher_prompt": []}, None, "of the same form", id="two forms"
        ),
        pytest.param(
            {"prompt": [{"role": "user", "content": "a"}]}, "{answer}", "the row has no answer", id="no answer"
        ),
    ],
)
def test_a_hint_that_cannot_be_given_names_the_row(row: dict[str, Any], system: str | None, message: str) -> None:
    with pytest.raises(DataFileError, match=f"row 0: .*{message}"):
        build_examples([row], build_tiny_tokenizer(), teacher_system=system, answers_needed=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({}, "choose one of --data FILE and --task NAME", id="nothing to train on"),
        pytest.param({"data": "a", "mode": "onpolicy"}, "'off_policy' or 'on_policy'", id="a misspelt mode"),
        pytest.param({"data": "a", "truncation": "left"}, "'error' or 'drop'", id="answers cut"),
        pytest.param({"data": "a", "techer": "b"}, "techer", id="a misspelt key"),
        pytest.param({"data": "a", "top_k": 0}, "top_k", id="no candidates"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DistillConfig(**settings)


def test_the_example_is_a_configuration() -> None:
    config = DistillConfig(**read_config(EXAMPLE, DistillConfig))
    assert config.teacher == "runs/teacher"
