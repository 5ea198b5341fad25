"""Datums, outputs, prompts and samples as a few flat arrays, which travel between processes as fast as memory is copied.

1000 `Datum` objects pickled one by one cost hundreds of times as much as the same numbers in one array of each dtype. Round
trips are exact: every bit, dtype, shape, key and order. What is not a number stays with the client: attributes that a
subclass of Datum adds, which no loss on the workers' side reads.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...datums.types import Datum, EncodedTextChunk, ModelInput, TensorData
from ..responses import SampledSequence, SampleResponse, TopLogprobs

#: Columns of `FlatTensors.entries`.
_NAME, _IS_FLOAT, _IS_SPARSE, _DIMENSIONS, _SIZE = range(5)
#: What a `SampleResponse` says about its prompt.
_OF_PROMPTS = ("prompt_logprobs", "topk_prompt_logprobs", "target_prompt_logprobs")


@dataclass(frozen=True, eq=False)
class FlatLists:
    """M lists of numbers, one after the other.

    numbers  [all numbers] int64 or float64
    lengths  [M] int64
    """

    numbers: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, lists: Sequence[Sequence[float]], dtype: type[np.number] = np.int64) -> FlatLists:
        """Python's or NumPy's numbers. Raises OverflowError for an integer beyond 64 bits."""
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        numbers = np.fromiter(itertools.chain.from_iterable(lists), dtype, int(lengths.sum()))
        return cls(numbers, lengths)

    def lists(self) -> list[list]:
        """The lists again, of Python's numbers."""
        numbers, ends = self.numbers.tolist(), np.cumsum(self.lengths).tolist()
        return [numbers[end - length : end] for end, length in zip(ends, self.lengths.tolist(), strict=True)]


@dataclass(frozen=True, eq=False)
class FlatTensors:
    """M dicts of `TensorData`, with E entries in all.

    names     the different keys
    counts    [M] int64, entries of each dict
    entries   [E, 5] int64: index of its key, whether float32, whether sparse, dimensions, listed values
    shapes    [dimensions of all entries] int64
    ints      [all listed int64 values]
    floats    [all listed float32 values]
    indices   of the sparse entries: each one's row pointers, then its columns
    """

    names: tuple[str, ...]
    counts: np.ndarray
    entries: np.ndarray
    shapes: np.ndarray
    ints: np.ndarray
    floats: np.ndarray
    indices: np.ndarray

    @classmethod
    def of(cls, dicts: Sequence[Mapping[str, TensorData]]) -> FlatTensors:
        """The numbers are copied, once."""
        names: dict[str, int] = {}
        entries: list[tuple[int, int, int, int, int]] = []
        shapes: list[int] = []
        values: dict[str, list[np.ndarray]] = {"int64": [], "float32": []}
        indices: list[int] = []
        for name, tensor in itertools.chain.from_iterable(one.items() for one in dicts):
            is_sparse = tensor.sparse_crow_indices is not None
            listed = np.array(tensor.data, dtype=tensor.dtype) if is_sparse else tensor.to_numpy().reshape(-1)
            indices += [*(tensor.sparse_crow_indices or ()), *(tensor.sparse_col_indices or ())]
            shapes += tensor.shape
            values[tensor.dtype].append(listed)
            number = names.setdefault(name, len(names))
            entries.append((number, tensor.dtype == "float32", is_sparse, len(tensor.shape), len(listed)))
        return cls(
            tuple(names),
            np.fromiter(map(len, dicts), np.int64, len(dicts)),
            np.array(entries, np.int64).reshape(-1, 5),
            np.array(shapes, np.int64),
            np.concatenate([np.zeros(0, np.int64), *values["int64"]]),
            np.concatenate([np.zeros(0, np.float32), *values["float32"]]),
            np.array(indices, np.int64),
        )

    def dicts(self) -> list[dict[str, TensorData]]:
        """The dicts again; dense tensors are views of `ints` and `floats`."""
        tensors = self._tensors()
        return [dict(itertools.islice(tensors, count)) for count in self.counts.tolist()]

    def _tensors(self) -> Iterator[tuple[str, TensorData]]:
        shapes, starts = self.shapes.tolist(), {True: 0, False: 0}
        first = 0  # of an entry's indices
        dimension = 0
        for number, is_float, is_sparse, dimensions, size in map(tuple, self.entries.tolist()):
            shape = shapes[dimension : dimension + dimensions]
            dimension += dimensions
            start = starts[bool(is_float)]
            starts[bool(is_float)] = start + size
            listed = (self.floats if is_float else self.ints)[start : start + size]
            if not is_sparse:
                yield self.names[number], TensorData.view(listed.reshape(shape))
                continue
            middle, end = first + shape[0] + 1, first + shape[0] + 1 + size
            crow, col = self.indices[first:middle].tolist(), self.indices[middle:end].tolist()
            first = end
            yield self.names[number], TensorData(listed, "float32" if is_float else "int64", shape, crow, col)


@dataclass(frozen=True, eq=False)
class FlatDatums:
    """N datums. tokens: one list per chunk. chunks: [N] int64, chunks of each datum. inputs: their `loss_fn_inputs`.

    routing: the routing matrices of each datum, where any has them
    """

    tokens: FlatLists
    chunks: np.ndarray
    inputs: FlatTensors
    routing: Sequence[Sequence[str] | None] | None = None

    @classmethod
    def of(cls, datums: Sequence[Datum]) -> FlatDatums:
        """Datums as `own_datums` gives them. Raises OverflowError for a token beyond 64 bits."""
        chunks = [chunk.tokens for datum in datums for chunk in datum.model_input.chunks]
        counts = np.fromiter((len(datum.model_input.chunks) for datum in datums), np.int64, len(datums))
        routing = [datum.model_input.routing_matrices for datum in datums]
        inputs = FlatTensors.of([datum.loss_fn_inputs for datum in datums])
        return cls(FlatLists.of(chunks), counts, inputs, routing if any(one is not None for one in routing) else None)

    def datums(self) -> list[Datum]:
        """The datums again, without what a subclass adds."""
        chunks = map(EncodedTextChunk, self.tokens.lists())
        routing = [None] * len(self.chunks) if self.routing is None else self.routing
        inputs = [
            ModelInput(list(itertools.islice(chunks, count)), one)
            for count, one in zip(self.chunks.tolist(), routing, strict=True)
        ]
        return [Datum(*both) for both in zip(inputs, self.inputs.dicts(), strict=True)]


@dataclass(frozen=True, eq=False)
class FlatSamples:
    """M `SampleResponse`s, in order.

    counts   [M] int64, sequences of each
    stopped  [sequences] bool: whether the sequence ended in a stop token or string
    rest     of each, what was asked for besides, as it is: the likeliest tokens of its sequences; logprobs and likeliest tokens of
             its prompt
    """

    tokens: FlatLists
    logprobs: FlatLists
    counts: np.ndarray
    stopped: np.ndarray
    rest: list[tuple[list[TopLogprobs | None], dict[str, Any]]]

    @classmethod
    def of(cls, responses: Sequence[SampleResponse]) -> FlatSamples:
        """Logprobs are Python's floats, and stay float64."""
        sequences = [sequence for response in responses for sequence in response.sequences]
        return cls(
            FlatLists.of([sequence.tokens for sequence in sequences]),
            FlatLists.of([sequence.logprobs for sequence in sequences], np.float64),
            np.fromiter((len(response.sequences) for response in responses), np.int64, len(responses)),
            np.array([sequence.stop_reason == "stop" for sequence in sequences], bool),
            [
                (
                    [one.topk_logprobs for one in response.sequences],
                    {name: getattr(response, name) for name in _OF_PROMPTS},
                )
                for response in responses
            ],
        )

    def responses(self) -> list[SampleResponse]:
        """The responses again."""
        reasons: list[Literal["stop", "length"]] = ["stop" if one else "length" for one in self.stopped.tolist()]
        rest = copy.deepcopy(self.rest)  # arrays that came from another process lie in memory that all processes share
        tops = [top for of_sequences, _ in rest for top in of_sequences]
        sequences = map(SampledSequence, self.tokens.lists(), self.logprobs.lists(), reasons, tops)
        own = [list(itertools.islice(sequences, count)) for count in self.counts.tolist()]
        return [SampleResponse(one, **of_prompt) for one, (_, of_prompt) in zip(own, rest, strict=True)]


def flat_top(results: Sequence[TopLogprobs]) -> FlatTensors:
    """A teacher's likeliest tokens of each datum."""
    pairs = [{"tokens": one.tokens, "logprobs": one.logprobs} for one in results]
    return FlatTensors.of([{name: TensorData.from_numpy(one) for name, one in pair.items()} for pair in pairs])


def top_of(flat: Mapping[str, TensorData]) -> TopLogprobs:
    """One datum's, as `flat_top` packed it."""
    return TopLogprobs(flat["tokens"].to_numpy(), flat["logprobs"].to_numpy())
