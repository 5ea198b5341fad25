"""The data types keep their numbers, with the forms and names of the Tinker SDK."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lossbook
from lossbook.datums import Datum, EncodedTextChunk, ModelInput, TensorData, as_datum
from lossbook.datums.errors import DtypeError, ShapeError

CSR: dict[str, Any] = {
    "data": [1, 2, 3],
    "dtype": "int64",
    "shape": [2, 4],
    "sparse_crow_indices": [0, 1, 3],
    "sparse_col_indices": [2, 0, 3],
}


@given(st.integers(0, 3).flatmap(lambda n: st.lists(st.integers(0, 3), min_size=n, max_size=n)), st.booleans())
def test_shape_and_row_major_order_survive_numpy_and_torch(shape: list[int], floats: bool) -> None:
    array = np.arange(int(np.prod(shape)), dtype=np.float32 if floats else np.int64).reshape(shape)
    for data in (TensorData.from_numpy(array), TensorData.from_torch(torch.from_numpy(array))):
        assert data.shape == shape
        assert data.dtype == ("float32" if floats else "int64")
        assert data.data == array.reshape(-1).tolist()
        assert np.array_equal(data.to_numpy(), array)
        assert torch.equal(data.to_torch(), torch.from_numpy(array))
        assert data == TensorData(data.data, data.dtype, shape)
        assert len(data) == (shape[0] if shape else 1)
        assert data.tolist() == array.tolist()


def test_to_torch_is_a_copy() -> None:
    data = TensorData([1.0, 2.0])
    data.to_torch().zero_()
    assert data.data == [1.0, 2.0]


def test_the_graph_of_a_tensor_is_dropped() -> None:
    data = TensorData.from_torch(torch.ones(2, requires_grad=True, dtype=torch.bfloat16))
    assert data.dtype == "float32"
    assert not data.to_torch().requires_grad


def test_csr_is_filled_up_with_zeros_as_in_the_tinker_sdk() -> None:
    data = TensorData(**CSR)
    assert data.tolist() == [[0, 0, 1, 0], [2, 0, 0, 3]]
    tinker = pytest.importorskip("tinker")
    assert tinker.TensorData(**CSR).to_torch().tolist() == data.tolist()
    assert data == TensorData(data.tolist())
    assert "sparse" in repr(data)


def test_csr_needs_both_lists_of_indices_and_a_shape() -> None:
    with pytest.raises(ShapeError, match="CSR data needs both"):
        TensorData([1], "int64", [1, 1], sparse_crow_indices=[0, 1])
    with pytest.raises(ShapeError, match="CSR data needs a 2-D `shape`, got None"):
        TensorData([1], "int64", sparse_crow_indices=[0, 1], sparse_col_indices=[0])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["a"], "must be numbers, got an array of <U1"),
        ("abc", "must be numbers, got str"),
        ([None, 1], "must be numbers, got NoneType"),
        ([1, "a"], "must be numbers, got an array of"),
    ],
)
def test_an_error_names_the_type_that_is_not_a_number(data: Any, message: str) -> None:
    with pytest.raises(DtypeError, match=message):
        TensorData(data)


def test_unsigned_arrays_become_int64() -> None:
    assert TensorData.from_numpy(np.arange(3, dtype=np.uint16)).dtype == "int64"
    assert TensorData.from_numpy(np.arange(3, dtype=np.uint64)).dtype == "int64"


def test_a_long_tensor_is_shortened_in_print() -> None:
    assert repr(TensorData(list(range(9)))) == "TensorData([0, 1, 2, 3, 4, 5, ...], dtype='int64', shape=[9])"


def test_tensors_of_different_kinds_differ() -> None:
    assert TensorData([1]) != TensorData([1.0])
    assert TensorData([1]) != TensorData([[1]])
    assert TensorData([1]) != [1]
    assert TensorData([float("nan")]) == TensorData([float("nan")])


def test_model_input_grows_as_in_the_tinker_sdk() -> None:
    grown = ModelInput.empty().append(EncodedTextChunk([1, 2])).append_int(3)
    assert grown.to_ints() == [1, 2, 3]
    assert grown.length == 3
    assert [chunk.length for chunk in grown.chunks] == [2, 1]
    with pytest.raises(ShapeError, match="tokens must be one flat list of ids"):
        ModelInput.from_ints([[1, 2]])


def test_images_are_refused() -> None:
    class Image:
        location = "file:///etc/passwd"

    class Input:
        chunks = (Image(),)

    with pytest.raises(DtypeError, match="model_input holds a Image: only text tokens are supported"):
        Datum(Input())  # type: ignore[arg-type]


def test_a_mapping_with_a_list_of_tokens_is_a_datum() -> None:
    datum = as_datum({"model_input": [1, 2], "loss_fn_inputs": {"weights": [1, 0]}})
    assert datum == Datum(ModelInput.from_ints([1, 2]), {"weights": TensorData([1.0, 0.0])})


def test_the_module_types_gives_every_data_type() -> None:
    for name in lossbook.types.__all__:
        assert hasattr(lossbook.types, name)
    assert lossbook.types.TensorData is TensorData


def test_a_chunk_copies_the_callers_list() -> None:
    tokens = [1, 2, 3]
    chunk = EncodedTextChunk(tokens=tokens)
    whole = ModelInput.empty().append(chunk)
    tokens.append(4)
    tokens[0] = 9
    assert whole.to_ints() == [1, 2, 3]
    assert (chunk.length, whole.length) == (3, 3)
    with pytest.raises(DtypeError, match="tokens must be a list of token ids, not None"):
        EncodedTextChunk(tokens=None)  # type: ignore[arg-type]
