"""transformers.Trainer with losses of ours: the gradient that reaches its optimizer, what it learns, what it refuses.

The wanted gradient is of datums: every row alone through the model, unpadded, and one call of the loss over all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lossbook import get_loss
from lossbook.datums.errors import LossbookError
from lossbook.integrations.transformers import LossCollator, compute_loss_func, with_loss
from lossbook.losses import LossLike

from .reference import PAD, assert_same, catcher, datum, numbers, settings, tiny, tokens, wanted_gradients

pytestmark = pytest.mark.slow

ROWS = tokens()


def row(number: int, names: tuple[str, ...] = ()) -> dict[str, Any]:
    """Row `number` as a data set holds it, with numbers per token or per row for the inputs of a loss."""
    prompt, response = ROWS[number]
    columns: dict[str, Any] = {"input_ids": prompt + response, "labels": [-100] * len(prompt) + response}
    for name in names:
        per_token = numbers(sum(map(ord, name)))[number]
        columns[name] = per_token[0] if name == "advantages" else [-abs(one) - 0.5 for one in per_token]
    return columns


def step(folder: Path, accumulation: int, trainer: type, names: tuple[str, ...] = (), **others: Any) -> Any:
    """The gradients of one optimizer step over all rows, and those wanted."""
    caught, model = catcher(), tiny()
    rows = [row(i, names) for i in range(len(ROWS))]
    arguments = transformers.TrainingArguments(
        **settings(folder, accumulation, remove_unused_columns=False, train_sampling_strategy="sequential")
    )
    trainer(model, arguments, train_dataset=rows, data_collator=LossCollator(PAD), callbacks=[caught], **others).train()
    return caught.steps


def wanted(loss: LossLike, names: tuple[str, ...] = ()) -> Any:
    data = [
        datum(*ROWS[i], **{name: value for name, value in row(i, names).items() if name in names})
        for i in range(len(ROWS))
    ]
    return wanted_gradients(tiny(), loss, data)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(get_loss("dft"), id="dft"),
        pytest.param(get_loss("cross_entropy"), id="a sum, which nothing divides"),
        pytest.param(
            get_loss("focal") - 0.1 * get_loss("entropy_bonus", reduction="token-mean"),
            id="a mixture that reads entropy",
        ),
    ],
)
def test_compute_loss_func_gives_the_gradient_of_the_whole_batch(
    tmp_path: Path, loss: LossLike, accumulation: int
) -> None:
    (got,) = step(tmp_path, accumulation, transformers.Trainer, compute_loss_func=compute_loss_func(loss))
    assert_same(got, wanted(loss))


POLICY = ("sampling_logprobs", "advantages")


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize(
    ("loss", "names"),
    [
        pytest.param(get_loss("grpo", kl_coefficient=0.0), POLICY, id="grpo"),
        pytest.param(get_loss("gspo"), POLICY, id="one value per row"),
        pytest.param(get_loss("dft", reduction="seq-mean-token-mean"), (), id="a mean of rows' means"),
        pytest.param(get_loss("dpo"), ("ref_logprobs",), id="pairs of rows"),
        pytest.param(
            get_loss("ppo", reduction="token-mean") + 0.5 * get_loss("gspo"),
            POLICY,
            id="a mixture with two denominators",
        ),
    ],
)
def test_a_trainer_with_a_loss_has_the_gradient_of_the_whole_batch(
    tmp_path: Path, loss: LossLike, names: tuple[str, ...], accumulation: int
) -> None:
    (got,) = step(tmp_path, accumulation, with_loss(transformers.Trainer, loss), names)
    assert_same(got, wanted(loss, names))


def test_grpo_raises_the_probability_of_rewarded_rows_and_lowers_that_of_punished_ones(tmp_path: Path) -> None:
    model = tiny()
    rows = [row(i) for i in range(len(ROWS))]

    def logprobs() -> torch.Tensor:
        batch = LossCollator(PAD)(rows)
        with torch.no_grad():
            logits = model(batch["input_ids"], batch["attention_mask"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        said = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
        return said * (labels != -100)

    before = logprobs()
    for number, one in enumerate(rows):
        length = len(one["input_ids"])
        one["sampling_logprobs"] = [0.0, *before[number, : length - 1].tolist()]
        one["advantages"] = 1.0 if number % 2 else -1.0
    arguments = transformers.TrainingArguments(
        **settings(tmp_path, 2, max_steps=6, learning_rate=3e-3, lr_scheduler_type="constant") | {"logging_steps": 1}
    )
    trainer = with_loss(transformers.Trainer, "grpo", kl_coefficient=0.0)(
        model, arguments, train_dataset=rows, data_collator=LossCollator(PAD)
    )
    trainer.train()
    moved = (logprobs() - before).sum(1)
    assert (moved[1::2] > 0).all()
    assert (moved[0::2] < 0).all()
    logged = [one for one in trainer.state.log_history if "loss" in one]
    assert logged[-1]["loss"] < logged[0]["loss"]
    assert logged[0]["lossbook/clip_fraction"] == 0.0
    assert "lossbook/nll" in logged[0]


def test_dft_learns_and_evaluates(tmp_path: Path) -> None:
    rows = [row(i) for i in range(len(ROWS))]
    arguments = transformers.TrainingArguments(**settings(tmp_path, 2, max_steps=12, learning_rate=1e-2))
    trainer = transformers.Trainer(
        tiny(),
        arguments,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=LossCollator(PAD),
        compute_loss_func=compute_loss_func("dft"),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] != before
    cross_entropy = compute_loss_func("cross_entropy", reduction="token-mean")
    batch = LossCollator(PAD)(rows)
    labels = batch.pop("labels")
    assert cross_entropy(trainer.model(**batch), labels) < 0.8 * cross_entropy(tiny()(**batch), labels)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: compute_loss_func("ppo"), "ppo reads 'sampling_logprobs', 'advantages'", id="inputs"),
        pytest.param(lambda: compute_loss_func("simpo"), "simpo couples a whole pair", id="pairs"),
        pytest.param(
            lambda: compute_loss_func("dft", reduction="seq-mean-token-mean"),
            "dft couples a whole datum",
            id="sequences",
        ),
        pytest.param(lambda: compute_loss_func("value_mse"), "value_mse reads 'values', 'returns'", id="a value head"),
        pytest.param(lambda: with_loss(dict, "dft"), "dict is not a transformers.Trainer", id="no trainer"),
        pytest.param(lambda: compute_loss_func(lambda data, logprobs_list: None), "which reads datums", id="datums"),
    ],
)
def test_a_loss_that_cannot_be_right_is_refused_when_it_is_named(make: Any, message: str) -> None:
    with pytest.raises(LossbookError, match=message):
        make()


@pytest.mark.parametrize(
    ("loss", "arguments", "others", "message"),
    [
        pytest.param("dft", {"label_smoothing_factor": 0.1}, {}, "label_smoothing_factor=0.1", id="label smoothing"),
        pytest.param(
            "dft",
            {},
            {"compute_loss_func": compute_loss_func("dft")},
            "compute_loss_func and dft are two losses",
            id="two losses",
        ),
        pytest.param("simpo", {}, {}, "train_sampling_strategy", id="pairs that would be shuffled apart"),
        pytest.param("clip_cov", {}, {}, "clip_cov couples a whole batch", id="a batch that would be cut"),
    ],
)
def test_a_setting_that_contradicts_the_loss_is_refused_when_the_trainer_is_made(
    tmp_path: Path, loss: str, arguments: dict[str, Any], others: dict[str, Any], message: str
) -> None:
    with pytest.raises(LossbookError, match=message):
        with_loss(transformers.Trainer, loss)(
            tiny(), transformers.TrainingArguments(**settings(tmp_path, 2, **arguments)), **others
        )


def test_an_input_that_the_batch_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(LossbookError, match=r"grpo reads 'sampling_logprobs', which this batch does not carry"):
        step(tmp_path, 1, with_loss(transformers.Trainer, "grpo", kl_coefficient=0.0))
