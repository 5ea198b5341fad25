"""What people see of lossbook's objects: a line for `repr`, a small piece of HTML in a notebook, a docstring for `help`."""

from __future__ import annotations

import inspect
import io
import pydoc
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lossbook as lb
from lossbook.datums.display import few, one_line
from lossbook.trainer.responses import ModelData, ModelInfo, TopLogprobs

LONG = lb.datum_from_tokens_weights(list(range(4000)), [0.0] * 2000 + [1.0] * 2000)
HOSTILE = "<script>alert(1)</script>\x1b[2J"
OUTPUT = lb.ForwardBackwardOutput(
    [{"logprobs": lb.TensorData(np.full(4000, -1.0))}] * 64, {f"metric_{i}{HOSTILE}": 1 / 3 for i in range(99)}
)
SEQUENCE = lb.SampledSequence(list(range(4000)), [-0.1] * 4000, "stop")


@lb.register_loss("shown_at_length", per="token", source=HOSTILE)
def shown_at_length(logprobs: Any, *, a_setting_of_a_long_name: str = HOSTILE * 20, another: float = 0.5) -> Any:
    """-logprobs <b>of</b> a loss whose docstring and settings are hostile.

    logprobs [T] nats; returns [T] nats <img src=x>
    """
    return -logprobs, {}


HOSTILE_LOSS = lb.get_loss("shown_at_length")
HOSTILE_CARD = lb.describe_loss("shown_at_length")
lb.unregister_loss("shown_at_length")
MIXTURE = 0.9 * lb.get_loss("grpo") + 0.1 * lb.get_loss("dpo") + 0.2 * HOSTILE_LOSS
INFO = ModelInfo("model-0", "a" * 200, True, 8, ModelData("a", "b"), 12_345, "cpu", reasons={"x": "y" * 999})
SHOWN: dict[str, Any] = {
    "a loss": lb.get_loss("grpo"),
    "a loss of hostile settings": HOSTILE_LOSS,
    "a mixture": MIXTURE,
    "a short mixture": 0.5 * lb.get_loss("ppo"),
    "a card": HOSTILE_CARD,
    "a preset": lb.describe_preset("trl:grpo"),
    "a comparison": lb.losses.compare_losses("ppo", "cispo"),
    "a datum of 4,000 tokens": LONG,
    "a datum of a hostile key": lb.Datum(lb.ModelInput.from_ints([1]), {HOSTILE: [0.5]}),
    "a datum of K targets": lb.Datum(lb.ModelInput.from_ints([1]), {"target_tokens": [[1, 2]]}),
    "a datum of nothing": lb.Datum(lb.ModelInput.empty()),
    "a model input": LONG.model_input,
    "a chunk": LONG.model_input.chunks[0],
    "an array": LONG.loss_fn_inputs["weights"],
    "an array of long numbers": lb.TensorData(np.linspace(-1e30, 1e-30, 8)),
    "an output": OUTPUT,
    "an empty output": lb.ForwardBackwardOutput([]),
    "an optimizer's step": lb.OptimStepResponse(OUTPUT.metrics, 3, 1e-4),
    "a sample": lb.SampleResponse([SEQUENCE] * 64, prompt_logprobs=[None]),
    "a sequence": SEQUENCE,
    "likeliest tokens": TopLogprobs(np.zeros((400, 20), np.int64), np.zeros((400, 20), np.float32)),
    "a model's facts": INFO,
    "an optimizer's parameters": lb.AdamParams(),
    "sampling parameters": lb.SamplingParams(),
}


@pytest.mark.parametrize("what", SHOWN)
def test_a_repr_is_a_line_of_at_most_120_characters(what: str) -> None:
    shown = repr(SHOWN[what])
    assert len(shown) <= 120
    assert shown.isprintable()
    assert "object at" not in shown


def test_reprs_say_what_matters() -> None:
    assert repr(LONG) == "Datum(3,999 tokens [0, 1, 2, ...], target_tokens int64[3999], weights float32[3999])"
    assert repr(lb.ModelInput.from_ints([5, 6])) == "ModelInput([5, 6], 2 tokens)"
    assert repr(lb.TensorData([0.3, 1.0])) == "TensorData([0.3, 1], dtype='float32', shape=[2])"
    assert repr(MIXTURE) == "0.9 * grpo(...) + 0.1 * dpo(...) + 0.2 * shown_at_length(...)"
    assert str(MIXTURE).startswith("0.9 * grpo(reduction='token-mean', clip_low=0.8, clip_high=1.2, ")
    assert repr(SEQUENCE).startswith("SampledSequence(4,000 tokens [0, 1, 2, 3, 4, 5, ...], logprobs [-0.1, ")
    assert repr(lb.ForwardBackwardOutput([{}], {"loss:sum": 1 / 3})) == (
        "ForwardBackwardOutput(nothing of 1 datum; loss:sum=0.333333)"
    )


def test_clients_and_futures_say_what_they_are() -> None:
    service = lb.ServiceClient(device="cpu")
    training = service.create_lora_training_client("tiny", rank=2)
    future = training.forward([LONG], "ppo")
    assert future.exception() is not None
    reference = service.create_reference_client("tiny")
    assert [repr(one) for one in (service, training, reference, future)] == [
        "<ServiceClient on cpu, checkpoints in 'checkpoints'>",
        "<TrainingClient model-0 of tiny>",
        "<ReferenceClient tiny/reference>",
        "<Future of model-0.forward (call 1): failed with MissingInput>",
    ]


class Elements(HTMLParser):
    """The elements, and the styles, of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.styles: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.styles += [value or "" for name, value in attrs if name == "style"]
        assert {name for name, _ in attrs} <= {"style", "title"}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("what", [name for name, one in SHOWN.items() if hasattr(one, "_repr_html_")])
def test_html_is_small_escaped_and_takes_its_colours_from_the_page(what: str) -> None:
    html = SHOWN[what]._repr_html_()
    assert len(html) < 80_000
    shown = Elements(html)
    assert shown.open == []
    assert shown.elements <= {"div", "strong", "span", "table", "tr", "td", "th"}
    # neither black on white nor white on black: text in the page's colour, over translucent colours
    assert not any("#" in style or "background:white" in style for style in shown.styles)
    assert all(
        "background:rgba(" in one or "background:transparent" in one for one in shown.styles if "background" in one
    )


def test_losses_cards_datums_and_outputs_have_html() -> None:
    with_html = {name for name, one in SHOWN.items() if hasattr(one, "_repr_html_")}
    assert with_html >= {"a loss", "a mixture", "a card", "a datum of 4,000 tokens", "an output"}


def test_tokens_of_a_datum_are_coloured_by_weight() -> None:
    datum = lb.Datum(lb.ModelInput.from_ints([7, 8, 9]), {"target_tokens": [8, 9, 10], "weights": [0.0, 2.0, -1.0]})
    html = datum._repr_html_()
    styles = {
        line.split('title="')[1].split('"')[0]: line.split('style="')[1].split('"')[0]
        for line in html.split("<span")[1:]
    }
    assert styles["token 7, weight 0"] == styles["token 8, weight 0"] == "opacity:.55"
    assert "22,163,74,0.55" in styles["token 9, weight 2"]
    assert "220,38,38,0.35" in styles["token 10, weight -1"]


def test_help_of_a_loss_is_about_that_loss() -> None:
    loss = lb.get_loss("grpo", clip_high=1.28)
    assert loss.__doc__ == inspect.getdoc(loss.spec.function)
    out = io.StringIO()
    pydoc.Helper(output=out).help(loss)
    assert "clip_high=1.28" in out.getvalue()
    assert "kl_coefficient KL(policy || reference)" in out.getvalue()
    assert loss.signature.parameters["clip_high"].default == 1.28
    assert "advantages" in loss.signature.parameters
    assert lb.Loss.__doc__ is not None
    assert lb.Loss.__doc__.startswith("A loss function with its resolved settings.")


def test_several_tensors_on_one_line_of_a_docstring_are_read_one_by_one() -> None:
    assert (HOSTILE_CARD.outputs["logprobs"].shape, HOSTILE_CARD.outputs["logprobs"].unit) == ("[T]", "nats")
    assert (HOSTILE_CARD.returns.shape, HOSTILE_CARD.returns.unit) == ("[T]", "nats <img src=x>")


@given(st.text(max_size=400), st.lists(st.integers() | st.floats() | st.text(), max_size=30))
def test_any_text_is_one_printable_line(text: str, values: list[Any]) -> None:
    for shown in (one_line(text), one_line(few(values))):
        assert len(shown) <= 120
        assert shown.isprintable()
