"""Reading a loss function's signature: its inputs, its annotations, and what cannot be filled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook import PerDatum, list_losses, register_loss
from lossbook.datums.errors import LossConfigError, LossContractError
from lossbook.losses import FlagPerDatum, Grouping, LowerBound, Positive, UpperBound
from lossbook.losses.spec.inputs import IdPerDatum, Input
from lossbook.losses.spec.spec import make_spec

from ..cases import datum, loss_of


def scaled(logprobs: Tensor, *, scale: float = 2.0) -> Tensor:
    return -scale * logprobs


def test_bounds_of_the_shared_types_hold_in_a_loss_of_ones_own() -> None:
    def own(logprobs: Tensor, *, low: LowerBound = 0.5, high: UpperBound = 2.0) -> Tensor:
        return -logprobs

    with pytest.raises(LossConfigError, match=r"own: high=0\.28: .* did you mean 1\.28\?"):
        loss_of(own, config={"high": 0.28})


def test_what_a_loss_reads_is_taken_from_its_positional_parameters() -> None:
    def reader(
        logprobs: Tensor,
        entropy: Tensor,
        seqs: Any,
        sampling_logprobs: Tensor,
        label: PerDatum,
        margin: PerDatum | None = None,
        bonus: Tensor | None = None,
    ) -> Tensor:
        return -logprobs

    spec = loss_of(reader).spec
    assert spec.outputs == ("logprobs", "entropy")
    assert [(i.name, i.required, i.per, i.keys) for i in spec.inputs] == [
        ("sampling_logprobs", True, "token", ("sampling_logprobs", "logprobs")),
        ("label", True, "datum", ("label",)),
        ("margin", False, "datum", ("margin",)),
        ("bonus", False, "token", ("bonus",)),
    ]
    assert not spec.wants_weights
    # This module has its annotations as strings; a module without that import must give the same.
    namespace: dict[str, Any] = {"Tensor": Tensor, "PerDatum": PerDatum}
    source = "def reader(logprobs: Tensor, label: PerDatum, margin: PerDatum | None = None): return -logprobs"
    exec(compile(source, "<evaluated annotations>", "exec", dont_inherit=True), namespace)
    assert [i.per for i in loss_of(namespace["reader"]).spec.inputs] == ["datum", "datum"]


def test_a_name_imported_for_type_checkers_only_does_not_hide_the_other_annotations() -> None:
    namespace: dict[str, Any] = {"PerDatum": PerDatum, "Positive": Positive}
    source = (
        "from __future__ import annotations\n"
        "def own(logprobs: Unknown, label: PerDatum, *, beta: Positive = 1.0) -> Unknown: return -logprobs"
    )
    exec(source, namespace)
    loss = loss_of(namespace["own"])
    assert loss.spec.inputs[0].per == "datum"
    with pytest.raises(LossConfigError, match=r"beta=-1.0: input should be greater than 0"):
        loss_of(namespace["own"], config={"beta": -1.0})


@pytest.mark.parametrize(
    ("parameters", "annotation", "parameter"),
    [
        pytest.param("logprobs, *, beta: Unknown = 1.0", "Unknown", "beta", id="of a setting"),
        pytest.param("logprobs, label: PerDatum", "PerDatum", "label", id="of an input of one number a datum"),
    ],
)
def test_an_annotation_that_decides_something_must_resolve(parameters: str, annotation: str, parameter: str) -> None:
    namespace: dict[str, Any] = {}
    exec(f"from __future__ import annotations\ndef own({parameters}): return -logprobs", namespace)
    with pytest.raises(LossContractError) as caught:
        loss_of(namespace["own"])
    assert str(caught.value) == (
        f"own: the annotation {annotation!r} of {parameter!r} cannot be resolved: name {annotation!r} is not defined. "
        "Import what it names at the top of the module, not under TYPE_CHECKING or in a function"
    )


def no_output(advantages: Tensor, ratio: float = 1.0) -> Tensor:
    return advantages


def reduces_itself(logprobs: Tensor, *, reduction: str = "sum") -> Tensor:
    return logprobs.sum()


@pytest.mark.parametrize(
    ("function", "registration", "error", "message"),
    [
        pytest.param(
            no_output,
            {},
            LossContractError,
            "own reads no model output, so nothing could be learned. Its positional parameters are (advantages, ratio); "
            "name one of logprobs, embeddings, entropy, logsumexp, mean_logprobs, values, topk_tokens, topk_logprobs, vocab_logprobs, teacher_vocab_logprobs, token_embeddings, layer_embeddings, or write it as fn(data, logprobs_list)",
            id="nothing of the model is read",
        ),
        pytest.param(
            scaled,
            {"per": "sequence"},
            LossContractError,
            "own: per='sequence' is none of token, datum, pair, group, batch",
            id="an unknown level",
        ),
        pytest.param(
            scaled,
            {"couples": "sequence"},
            LossContractError,
            "own: couples='sequence' is none of token, datum, pair, group, batch",
            id="an unknown coupling",
        ),
        pytest.param(
            scaled,
            {"reduction": "pair-mean"},
            LossContractError,
            "own: a loss per token reduces by sum, token-mean, seq-mean-token-mean, seq-mean-token-sum, "
            "seq-mean-token-sum-norm, prompt-mean, not 'pair-mean'",
            id="a reduction of another level",
        ),
        pytest.param(
            reduces_itself,
            {},
            LossConfigError,
            "own: 'reduction' belongs to the registry; a loss returns losses unreduced",
            id="a reduction of its own",
        ),
    ],
)
def test_a_signature_that_cannot_be_filled_is_refused_at_registration(
    function: Any, registration: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        register_loss("own", **registration)(function)
    assert str(caught.value) == message
    assert "own" not in list_losses()


@pytest.mark.parametrize(
    ("per", "reduction", "couples"),
    [("token", "sum", "token"), ("datum", "mean", "datum"), ("pair", "pair-mean", "pair"), ("batch", "sum", "batch")],
)
def test_defaults_follow_from_the_level(per: str, reduction: str, couples: str) -> None:
    def own(logprobs: Tensor) -> Tensor:
        return logprobs

    loss = loss_of(own, per=per)
    assert (loss.reduction, loss.couples) == (reduction, couples)


def test_a_loss_couples_at_least_what_one_value_is_about() -> None:
    def own(logprobs: Tensor) -> Tensor:
        return logprobs

    assert loss_of(own, per="pair", couples="token").couples == "pair"
    assert loss_of(own, per="token", couples="batch").couples == "batch"


def two_blocks(datums: int, config: Any, inputs: Mapping[str, Tensor | None] | None) -> Grouping:
    return Grouping(members=[[i, datums // 2 + i] for i in range(datums // 2)], values=datums // 2)


def pair_distance(embeddings: Tensor) -> Tensor:
    first, second = embeddings.chunk(2)
    return (first - second).square().sum(-1)


def test_the_older_words_units_partners_and_claims_say_the_same_as_groups_and_laws() -> None:
    words: dict[str, Any] = {"per": "datum", "couples": "batch", "reduction": "mean"}
    new = loss_of(pair_distance, groups=two_blocks, laws={"rotation_invariance": {}}, **words)
    old = loss_of(
        pair_distance,
        units=lambda datums, config, inputs: datums // 2,
        partners=lambda datums, config: [[i, datums // 2 + i] for i in range(datums // 2)],
        claims={"rotation_invariance": {}},
        **words,
    )
    data, outputs = [datum(1) for _ in range(4)], [torch.tensor([float(i)]) for i in range(4)]
    assert old.spec.laws == new.spec.laws == {"rotation_invariance": {}}
    assert old.spec.members(4, old.config) == new.spec.members(4, new.config) == [[0, 2], [1, 3]]
    assert float(old.count(data)) == float(new.count(data)) == 2
    assert float(old(data, outputs)[0]) == float(new(data, outputs)[0]) == 4.0


def test_units_are_asked_where_the_inputs_are_and_partners_may_stand_alone() -> None:
    def labels(datums: int, config: Any, inputs: Mapping[str, Tensor | None]) -> int:
        assert inputs["label"] is not None
        return int((inputs["label"] > 0).sum())

    def of_label(embeddings: Tensor, label: PerDatum) -> Tensor:
        return embeddings.sum(1)[label > 0]

    data, outputs = [datum(1, label=float(i)) for i in range(3)], [torch.tensor([float(i)]) for i in range(3)]
    counted = loss_of(of_label, per="datum", couples="batch", units=labels)
    assert counted.spec.members(3, counted.config) is None
    assert float(counted.count(data)) == 2
    paired = loss_of(pair_distance, per="batch", partners=lambda datums, config: [[0, 1], [2]])
    assert paired.spec.members(3, paired.config) == [[0, 1], [2]]
    assert counted(data, outputs)[0] == (1 + 2) / 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(
            {"groups": two_blocks, "units": lambda *_: 1}, "own: give groups alone; units or partners", id="groups"
        ),
        pytest.param({"laws": {}, "claims": {}}, "own: give laws alone; claims", id="laws"),
    ],
)
def test_a_word_and_its_older_spelling_together_are_refused(words: dict[str, Any], message: str) -> None:
    with pytest.raises(LossContractError, match=message):
        register_loss("own", per="datum", **words)


def test_the_kind_of_an_input_is_its_annotations_or_its_names() -> None:
    def reader(
        logprobs: Tensor,
        ref_logprobs: Tensor,
        teacher_probs: Tensor,
        sequence_ratio_mask: Tensor,
        label: PerDatum,
        is_good: FlagPerDatum,
        advantages: Tensor,
    ) -> Tensor:
        return -logprobs

    kinds = {one.name: (one.kind, one.is_flag) for one in loss_of(reader).spec.inputs}
    assert kinds == {
        "ref_logprobs": ("logprob", False),
        "teacher_probs": ("prob", False),
        "sequence_ratio_mask": ("flag", False),
        "label": ("flag", False),
        "is_good": ("flag", True),
        "advantages": ("number", False),
    }


def test_a_loss_over_groups_reads_their_ids_once_whether_it_names_them_or_not() -> None:
    def unnamed(values: Tensor, label: PerDatum, seqs: Any) -> Tensor:
        return seqs.groups.sum(label)

    def named(values: Tensor, group: IdPerDatum, label: PerDatum, seqs: Any) -> Tensor:
        return seqs.groups.sum(label)

    for function in (unnamed, named):
        inputs = loss_of(function, per="group").spec.inputs
        assert [(one.name, one.required, one.per, one.is_id) for one in inputs] == [
            ("label", True, "datum", False),
            ("group", True, "datum", True),
        ]


@pytest.mark.parametrize(
    ("module", "family"),
    [
        ("lossbook.losses.policy.clipped", "policy"),
        ("lossbook.losses.policy", "policy"),
        ("lossbook.trainer.policy.clipped", "own"),
        ("lossbook.losses", "own"),
        ("mine.losses.policy", "own"),
        (None, "own"),
    ],
)
def test_a_losss_family_is_its_folder_in_lossbook(module: str | None, family: str) -> None:
    def own(logprobs: Tensor) -> Tensor:
        return -logprobs

    own.__module__ = module  # type: ignore[assignment]
    assert make_spec(own, "own", per="token").family == family


def test_a_loss_says_nothing_that_was_not_declared() -> None:
    def own(logprobs: Tensor) -> Tensor:
        return -logprobs

    spec = make_spec(own, "own", per="token")
    assert not Input("label", True, "datum").is_id
    assert (spec.is_batch_style, spec.linear, spec.groups, spec.candidates, spec.conflict) == (
        False,
        False,
        None,
        None,
        None,
    )
