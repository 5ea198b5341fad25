"""A loss as a line of text, as HTML, and as a signature."""

from __future__ import annotations

import inspect

from torch import Tensor

from lossbook import get_loss

from ..cases import loss_of


def noted(logprobs: Tensor, *, note: str = "", scale: float = 1.0) -> Tensor:
    return -scale * logprobs


def test_a_repr_has_all_settings_that_fit_a_line_of_120_and_else_those_that_were_changed() -> None:
    room = 120 - len(str(loss_of(noted)))
    fits, long = (loss_of(noted, config={"note": "x" * length}) for length in (room, room + 1))
    assert repr(fits) == str(fits)
    assert len(repr(fits)) == 120
    assert repr(long) == f"noted(note='{'x' * (room + 1)}', ...)"


def test_a_default_that_is_no_number_is_not_taken_for_a_change() -> None:
    def layered(logprobs: Tensor, *, layers: tuple[int, ...] = (3, 6), note: str = "") -> Tensor:
        return -logprobs

    assert repr(loss_of(layered, config={"note": "x" * 99})) == f"layered(note='{'x' * 99}', ...)"


def test_a_mixture_has_the_settings_of_its_parts_as_far_as_a_line_is_long() -> None:
    bare = str(get_loss("reinforce") + loss_of(noted))
    fits, long = (get_loss("reinforce") + loss_of(noted, config={"note": "x" * (n - len(bare))}) for n in (120, 121))
    assert repr(fits) == str(fits)
    assert repr(long) == "1 * reinforce(...) + 1 * noted(...)"


def test_html_has_the_docstring_where_there_is_one() -> None:
    assert "When to use" in get_loss("ppo")._repr_html_()
    assert "noted" in loss_of(noted)._repr_html_()


def test_a_signature_has_what_the_function_reads_and_the_settings_as_they_are() -> None:
    parameters = loss_of(noted, config={"scale": 3.0}).signature.parameters
    assert {name: one.default for name, one in parameters.items()} == {
        "logprobs": inspect.Parameter.empty,
        "note": "",
        "scale": 3.0,
    }
