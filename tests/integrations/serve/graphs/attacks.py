"""Graphs that no client of good will sends. Each stands beside a word of what it is answered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from .encoding import LOGPROBS, graph, node, output, placeholder

Graph = Any
HUGE = 2**31
MATRIX = [{"name": "logprobs", "rank": 2}]


def call(target: str, *args: Any, **kwargs: Any) -> Graph:
    return graph(node(target, *args, **kwargs))


def method(target: str, *args: Any, **kwargs: Any) -> Graph:
    return graph(node(target, "@logprobs", *args, op="call_method", **kwargs))


def raw(argument: Any, target: str = "operator.mul") -> Graph:
    """One argument as it stands on the wire."""
    made = node(target, "@logprobs")
    made["args"].append(argument)
    return graph(made)


def growing(target: str, factor: Any, count: int) -> Graph:
    """Each node makes a multiple of the one before it."""
    names = ["logprobs", *(f"x{i}" for i in range(count - 1)), "x"]
    pairs = pairwise(names)
    return graph(*(node(target, f"@{one}", factor, op="call_method", name=other) for one, other in pairs))


def outer_square(size: int) -> Graph:
    """size x size numbers from a view of size numbers."""
    return graph(
        node("torch.zeros", [size], name="z"),
        node("unsqueeze", "@z", 1, op="call_method", name="column"),
        node("torch.nn.functional.mse_loss", "@column", "@z"),
    )


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


#: Names that the table does not have: nothing is looked up, so none of them is imported or called.
NAMES: dict[str, Graph] = {
    "torch.load": call("torch.load", "/etc/passwd"),
    "torch.hub.load": call("torch.hub.load", "someone/repo", "model"),
    "torch.save": call("torch.save", "@logprobs", "/root/x"),
    "torch.jit.load": call("torch.jit.load", "x.pt"),
    "torch.package.PackageImporter": call("torch.package.PackageImporter", "x"),
    "torch.ops.load_library": call("torch.ops.load_library", "libc.so.6"),
    "torch.ops.aten.exp": call("torch.ops.aten.exp", "@logprobs"),
    "torch.classes.load_library": call("torch.classes.load_library", "x.so"),
    "torch.utils.cpp_extension.load_inline": call("torch.utils.cpp_extension.load_inline", "x", "int main(){}"),
    "torch.utils.model_zoo.load_url": call("torch.utils.model_zoo.load_url", "http://127.0.0.1/x"),
    "torch.compile": call("torch.compile", "@logprobs"),
    "torch._dynamo.reset": call("torch._dynamo.reset"),
    "torch.autograd.grad": call("torch.autograd.grad", "@logprobs", "@logprobs"),
    "torch.set_num_threads": call("torch.set_num_threads", 1),
    "torch.set_default_dtype": call("torch.set_default_dtype", {"dtype": "float64"}),
    "torch.manual_seed": call("torch.manual_seed", 0),
    "torch.cuda.set_device": call("torch.cuda.set_device", 7),
    "torch.distributed.init_process_group": call("torch.distributed.init_process_group"),
    "torch.multiprocessing.spawn": call("torch.multiprocessing.spawn", "@logprobs"),
    "torch.from_file": call("torch.from_file", "/etc/passwd"),
    "torch.frombuffer": call("torch.frombuffer", "@logprobs"),
    "torch.Tensor": call("torch.Tensor", HUGE),
    "torch.empty": call("torch.empty", 100),
    "torch.empty_like": call("torch.empty_like", "@logprobs"),
    "torch.rand_like": call("torch.rand_like", "@logprobs"),
    "torch.nn.functional.dropout": call("torch.nn.functional.dropout", "@logprobs", 0.5),
    "torch.bernoulli": call("torch.bernoulli", "@logprobs"),
    "torch.nonzero": call("torch.nonzero", "@logprobs"),
    "torch.masked_select": call("torch.masked_select", "@logprobs", "@logprobs"),
    "torch.as_strided": call("torch.as_strided", "@logprobs", [HUGE], [1]),
    "torch.kron": call("torch.kron", "@logprobs", "@logprobs"),
    "torch.cartesian_prod": call("torch.cartesian_prod", "@logprobs", "@logprobs"),
    "operator.attrgetter": call("operator.attrgetter", "__class__"),
    "operator.methodcaller": call("operator.methodcaller", "numpy"),
    "operator.setitem": call("operator.setitem", "@logprobs", 0, 1.0),
    "operator.iadd": call("operator.iadd", "@logprobs", 1.0),
    "operator.lshift": call("operator.lshift", 1, HUGE),
    "operator.concat": call("operator.concat", "@logprobs", "@logprobs"),
    "math.factorial": call("math.factorial", 10**6),
    "math.comb": call("math.comb", 10**6, 10**5),
    "os.system": call("os.system", "true"),
    "subprocess.run": call("subprocess.run", "true"),
    "builtins.getattr": call("builtins.getattr", "@logprobs", "__globals__"),
    "builtins.eval": call("builtins.eval", "1"),
    "eval": call("eval", "1"),
    "exec": call("exec", "1"),
    "open": call("open", "/etc/passwd"),
    "__import__": call("__import__", "os"),
    "builtins.__import__": call("builtins.__import__", "os"),
    "importlib.import_module": call("importlib.import_module", "os"),
    "lossbook.ServiceClient": call("lossbook.ServiceClient"),
    "torch.exp.__call__": call("torch.exp.__call__", "@logprobs"),
    "torch..exp": call("torch..exp", "@logprobs"),
    "Tensor.add_": method("add_", 1.0),
    "Tensor.clamp_": method("clamp_", 0.0),
    "Tensor.copy_": method("copy_", "@logprobs"),
    "Tensor.requires_grad_": method("requires_grad_"),
    "Tensor.backward": method("backward"),
    "Tensor.item": method("item"),
    "Tensor.numpy": method("numpy"),
    "Tensor.tolist": method("tolist"),
    "Tensor.untyped_storage": method("untyped_storage"),
    "Tensor.data_ptr": method("data_ptr"),
    "Tensor.set_": method("set_"),
    "Tensor.register_hook": method("register_hook", "x"),
    "Tensor.as_strided": method("as_strided", [HUGE], [1]),
    "Tensor.new_empty": method("new_empty", 100),
    "Tensor.nonzero": method("nonzero"),
    "Tensor.cuda": method("cuda"),
    "Tensor.share_memory_": method("share_memory_"),
    "Tensor.__reduce_ex__": method("__reduce_ex__", 2),
    "Tensor.__class__": method("__class__"),
    "Tensor.apply_": method("apply_", "x"),
    "get_attr": graph({"op": "get_attr", "name": "x", "target": "weight", "args": [], "kwargs": {}}),
    "call_module": graph({"op": "call_module", "name": "x", "target": "linear", "args": [], "kwargs": {}}),
    "call_source": graph({"op": "call_source", "name": "x", "target": "print(1)", "args": [], "kwargs": {}}),
    **{
        f"attribute '{name}'": call("getattr", "@logprobs", name)
        for name in (
            "__globals__",
            "__class__",
            "__dict__",
            "data",
            "grad",
            "grad_fn",
            "_base",
            "real",
            "exp",
            "values",
        )
    },
}
#: Arguments that operations do not take.
ARGUMENTS: dict[str, tuple[Graph, str]] = {
    "a long string by repetition": (call("operator.mul", "a", 10**9), "must be a tensor or number, not a string"),
    "a tower of powers": (
        graph(node("operator.pow", 10, 9, name="p"), node("operator.pow", 10, "@p")),
        "beyond 2",
    ),
    "a power of powers": (
        graph(node("operator.pow", 2, 60, name="p"), node("operator.pow", "@p", 60)),
        "beyond 2",
    ),
    "a whole number by products": (
        graph(
            node("operator.mul", HUGE, HUGE, name="p"),
            node("operator.mul", "@p", "@p"),
        ),
        "beyond 2",
    ),
    "a literal beyond 2^31": (raw(2**40), "beyond 2^31"),
    "a literal of a thousand digits": (raw(10**1000), "beyond 2^31"),
    "a complex number": (graph(node("operator.pow", -8, 0.5)), "cannot be here"),
    "a string as device": (method("to", "cuda:7"), "must be a dtype, device or tensor, not a string"),
    "a string as device by name": (method("to", device="cuda:7"), "must be a device, not a string"),
    "a device that is none": (raw({"device": "../../x"}, "operator.add"), "no argument of this form: device"),
    "a device as a number": (raw({"device": "cpu"}), "must be a tensor or number, not a device"),
    "out": (call("torch.exp", "@logprobs", out="@logprobs"), "out must be None"),
    "in place": (call("torch.nn.functional.relu", "@logprobs", inplace=True), "inplace must be False"),
    "a requested gradient": (call("torch.zeros", 3, requires_grad=True), "requires_grad must be False"),
    "an unknown keyword": (call("torch.exp", "@logprobs", evil=1), "takes no 'evil' here"),
    "an unknown choice": (
        call("torch.nn.functional.mse_loss", "@logprobs", "@logprobs", reduction="evil"),
        "'none' or 'mean' or 'sum', not a string",
    ),
    "too many arguments": (call("torch.exp", "@logprobs", 1, 2, 3), "arguments by position, not 4"),
    "an argument twice": (call("torch.sum", "@logprobs", 0, dim=0), "given twice"),
    "an argument missing": (call("operator.add", "@logprobs"), "misses right"),
    "a method of a number": (
        graph({"op": "call_method", "name": "x", "target": "sum", "args": [3], "kwargs": {}}),
        "of no tensor",
    ),
    "a method of nothing": (
        graph({"op": "call_method", "name": "x", "target": "sum", "args": [], "kwargs": {}}),
        "of no tensor",
    ),
    "math of a tensor": (call("math.exp", "@logprobs"), "must be a number, not a tensor"),
    "math beyond floats": (call("math.exp", 1e6), "math range error"),
    "a division by zero": (call("operator.floordiv", 1, 0), "by zero"),
    "an index by a mask": (
        graph(node("operator.gt", "@logprobs", 0, name="mask"), node("operator.getitem", "@logprobs", "@mask")),
        "use torch.where",
    ),
    "an index by a string": (call("operator.getitem", "@logprobs", "__class__"), "index must be"),
    "an index by a float": (call("operator.getitem", "@logprobs", 0.5), "index must be"),
    "a place outside": (call("operator.getitem", "@logprobs", 10**6), "out of bounds"),
    "places outside": (
        graph(
            node("long", "@logprobs", op="call_method", name="places"),
            node("operator.sub", "@places", 10**6, name="far"),
            node("torch.gather", "@logprobs", 0, "@far"),
        ),
        "is not in a dimension of size",
    ),
    "a slice with step 0": (raw({"slice": [None, None, 0]}, "operator.getitem"), "step must be 1 or more"),
    "a slice backwards": (raw({"slice": [None, None, -1]}, "operator.getitem"), "step must be 1 or more"),
    "a slice of strings": (raw({"slice": ["a", None, None]}, "operator.getitem"), "not of a string"),
    "a slice of two": (raw({"slice": [None, None]}, "operator.getitem"), "no argument of this form: slice"),
    "a step 0 that is computed": (
        graph(
            node("operator.sub", 1, 1, name="zero"),
            node("operator.getitem", "@logprobs", {"slice": [None, None, {"ref": "zero"}]}),
        ),
        "index must be",
    ),
    "a bare NaN": (raw(math.nan), "not finite"),
    "a bare infinity": (raw(math.inf), "not finite"),
    "a float of another name": (raw({"float": "1e400"}), "no argument of this form: float"),
    "a float that is no string": (raw({"float": 1.0}), "no argument of this form: float"),
    "a dtype of another name": (raw({"dtype": "complex64"}), "no argument of this form: dtype"),
    "a dtype with dots": (raw({"dtype": "float32.__class__"}), "no argument of this form: dtype"),
    "a view as another dtype": (method("view", {"dtype": "int32"}), "must be up to 8 sizes"),
    "a layout": (raw({"layout": "sparse_coo"}), "no argument of this form: layout"),
    "an unknown tag": (raw({"pickle": "gASV"}), "no argument of this form: pickle"),
    "two tags": (raw({"ref": "logprobs", "tuple": []}), "object with one key"),
    "no tag": (raw({}), "object with one key"),
    "a dict as argument": (raw({"dict": {"a": 1}}), "no argument of this form: dict"),
    "nested lists": (raw(nested(10_000)), "nested deeper than 8"),
    "nested tuples": (raw({"tuple": [{"tuple": [{"tuple": nested(7)}]}]}), "nested deeper than 8"),
    "a million arguments": (raw([0] * 10**6), "more than 1024 values"),
    "a long string": (raw("a" * 10**6), "a string of 1000000 characters"),
    "an equation of code": (call("torch.einsum", "__import__('os')", "@logprobs"), "must be an equation"),
    "many dimensions": (call("torch.zeros", [1] * 1000), "must be up to 8 sizes"),
    "a negative size": (call("torch.zeros", -5), "negative"),
    "classes without end": (
        graph(
            node("long", "@logprobs", op="call_method", name="places"),
            node("torch.nn.functional.one_hot", "@places", -1),
        ),
        "from 1 to 4096",
    ),
}  # fmt: skip
#: What would take too much memory or time, found without allocating anything.
BLOW_UPS: dict[str, Graph] = {
    "zeros": call("torch.zeros", HUGE),
    "zeros of many sizes": call("torch.zeros", [10**6, 10**6]),
    "zeros beyond whole numbers": call("torch.zeros", [HUGE] * 8),
    "ones": call("torch.ones", [10**5, 10**5]),
    "full": call("torch.full", [10**6, 10**6], 1.0),
    "arange": call("torch.arange", HUGE),
    "linspace": call("torch.linspace", 0.0, 1.0, HUGE),
    "eye": call("torch.eye", 10**6),
    "new_zeros": method("new_zeros", 10**6, 10**6),
    "repeat": method("repeat", HUGE),
    "tile": method("tile", 10**5, 10**5),
    "expand": method("expand", 10**6, 10**6, 5),
    "broadcast_to": call("torch.broadcast_to", "@logprobs", [10**6, 10**6, 5]),
    "repeat_interleave": call("torch.repeat_interleave", "@logprobs", HUGE),
    "pad": call("torch.nn.functional.pad", "@logprobs", [HUGE, HUGE]),
    "repeats that multiply": growing("repeat", 1000, 6),
    "one_hot": graph(
        node("torch.zeros", [10**5], dtype={"dtype": "int64"}, name="z"),
        node("torch.nn.functional.one_hot", "@z", 4096),
    ),
    "a broadcast inside a loss": outer_square(10**6),
    "a broadcast of a million by a million": graph(
        node("torch.arange", 10**6, name="a"),
        node("unsqueeze", "@a", 1, op="call_method", name="column"),
        node("operator.add", "@column", "@a"),
    ),
    "a distance of broadcasts": graph(
        node("torch.ones", [10**6], name="a"),
        node("unsqueeze", "@a", 1, op="call_method", name="column"),
        node("torch.dist", "@column", "@a"),
    ),
    "outer": graph(node("torch.ones", [10**6], name="a"), node("torch.outer", "@a", "@a")),
    "einsum": graph(node("torch.ones", [10**6], name="a"), node("torch.einsum", "i,j->ij", "@a", "@a")),
    "matmul": graph(
        node("torch.ones", [6000, 6000], name="a"),
        node("torch.matmul", "@a", "@a"),
    ),
    "diag": graph(node("torch.ones", [10**6], name="a"), node("torch.diag", "@a")),
    "cat": graph(node("torch.ones", [10**6], name="a"), node("torch.cat", ["@a"] * 1000)),
    "unbind": graph(node("torch.ones", [10**6], name="a"), node("torch.unbind", "@a")),
    "split": graph(node("torch.ones", [10**6], name="a"), node("torch.split", "@a", 1)),
    "many large nodes": graph(
        node("torch.ones", [10**6], name="x0"),
        *(node("torch.exp", f"@x{i}", name=f"x{i + 1}") for i in range(99)),
        node("torch.sum", "@x99"),
    ),
}


def _nodes(*nodes: dict[str, Any]) -> Graph:
    return {"format": 1, "nodes": [*nodes]}


ENDING = (node("sum", "@logprobs", op="call_method", name="loss"), output())
#: Graphs that are none, with their inputs where these are other than one [T].
SHAPES: dict[str, tuple[Graph, str]] = {
    "a forward reference": (
        graph(node("torch.exp", "@later", name="x"), node("torch.exp", "@logprobs", name="later")),
        "no earlier node",
    ),
    "a node that reads itself": (call("torch.exp", "@x"), "no earlier node"),
    "a cycle": (graph(node("torch.exp", "@b", name="a"), node("torch.exp", "@a", name="b")), "no earlier node"),
    "a reference to nothing": (call("torch.exp", "@nobody"), "no earlier node"),
    "a reference to a list": (raw({"ref": ["logprobs"]}), "no earlier node"),
    "two nodes of one name": (
        graph(node("torch.exp", "@logprobs"), node("torch.log", "@logprobs")),
        "another node has the name x",
    ),
    "a node named as the input": (graph(node("torch.exp", "@logprobs", name="logprobs")), "another node has the name"),
    "a name that is code": (graph(node("torch.exp", "@logprobs", name="x; import os")), "must be letters"),
    "an empty name": (graph(node("torch.exp", "@logprobs", name="")), "must be letters"),
    "a name of a million letters": (graph(node("torch.exp", "@logprobs", name="x" * 10**6)), "must be letters"),
    "a million nodes": (graph(*[node("torch.exp", "@logprobs")] * 10**6), "the limit graph_nodes is 512"),
    "format 2": ({**call("torch.exp", "@logprobs"), "format": 2}, "format must be 1"),
    "format true": ({**call("torch.exp", "@logprobs"), "format": True}, "format must be 1"),
    "format null": ({**call("torch.exp", "@logprobs"), "format": None}, "format must be 1"),
    "no graph": (None, "must be an object"),
    "a list for a graph": ([], "must be an object"),
    "no nodes": ({"format": 1, "nodes": []}, "must be a list of nodes"),
    "nodes by name": ({"format": 1, "nodes": {"a": 1}}, "must be a list of nodes"),
    "a node that is a string": (_nodes(placeholder(), "x", *ENDING), "must be an object"),  # type: ignore[arg-type]
    "a node without a target": (_nodes(placeholder(), {"op": "call_function", "name": "x"}, *ENDING), "must be strings"),
    "arguments by name": (
        _nodes(placeholder(), {**node("torch.exp"), "args": {"input": 1}}, *ENDING),
        "args must be a list",
    ),
    "no output": (_nodes(placeholder(), node("torch.exp", "@logprobs")), "must be the output"),
    "two outputs": (_nodes(placeholder(), *ENDING, {**output(), "name": "more"}), "output must be the last node"),
    "no placeholder": (_nodes(node("torch.zeros", 1, name="loss"), output()), "0 placeholders"),
    "a placeholder twice": (_nodes(placeholder(), {**placeholder(), "name": "p"}, *ENDING), "not in the inputs"),
    "a placeholder of another name": (_nodes(placeholder("weights"), *ENDING), "not in the inputs"),
    "a placeholder with a default": (_nodes({**placeholder(), "args": [1]}, *ENDING), "no default"),
    "a late placeholder": (
        _nodes(node("torch.zeros", 1, name="z"), placeholder(), *ENDING),
        "come before other nodes",
    ),
    "no loss": (graph(node("torch.exp", "@logprobs"), last=output(1.0)), "must be the result of a node"),  # type: ignore[arg-type]
    "no metrics": (
        graph(last=node("output", {"tuple": [{"ref": "logprobs"}]}, op="output", name="output")),
        "must return (loss, metrics)",
    ),
    "a metric that shadows": (graph(last=output("@logprobs", {"loss:sum": "@logprobs"})), "must be called custom/"),
    "a metric with two colons": (graph(last=output("@logprobs", {"custom/a:b:sum": "@logprobs"})), "must be called"),
    "a metric that is a number": (graph(last=output("@logprobs", {"custom/a:sum": 1.0})), "must be the result of a node"),
    "a metric of many numbers": (
        graph(*ENDING[:1], last=output("@loss", {"custom/a:sum": "@logprobs"})),
        "must be a scalar tensor",
    ),
    "a loss of many numbers": (graph(last=output("@logprobs")), "end with .sum()"),
    "a loss that is a shape": (graph(node("getattr", "@logprobs", "shape"), last=output("@x")), "must be a scalar tensor"),
    "a loss without gradient": (
        graph(node("detach", "@logprobs", op="call_method", name="d"), node("torch.sum", "@d"), last=output("@x")),
        "has no gradient",
    ),
    "a loss of another gradient": (graph(node("torch.ones", 1, name="d"), node("torch.sum", "@d"), last=output("@x")), "no gradient"),
    "a loss of whole numbers": (
        graph(node("long", "@logprobs", op="call_method", name="d"), node("torch.sum", "@d"), last=output("@x")),
        "must be a scalar tensor",
    ),
}  # fmt: skip
#: Declarations of inputs.
INPUTS: dict[str, tuple[Any, str]] = {
    "none": ([], "list of 1 to 16"),
    "null": (None, "list of 1 to 16"),
    "seventeen": ([*LOGPROBS, *({"name": f"i{i}", "rank": 1} for i in range(16))], "list of 1 to 16"),
    "another first": ([{"name": "weights", "rank": 1}], "first input must be logprobs"),
    "one name twice": ([*LOGPROBS, {"name": "w", "rank": 1}, {"name": "w", "rank": 1}], "two inputs have one name"),
    "logprobs of rank 0": ([{"name": "logprobs", "rank": 0}], "must be 1 or 2"),
    "rank 3": ([*LOGPROBS, {"name": "w", "rank": 3}], "must be 0, 1 or 2"),
    "rank true": ([*LOGPROBS, {"name": "w", "rank": True}], "must be 0, 1 or 2"),
    "a name in capitals": ([*LOGPROBS, {"name": "W", "rank": 1}], "lower-case"),
    "a name with a path": ([*LOGPROBS, {"name": "../w", "rank": 1}], "lower-case"),
    "strings": (["logprobs"], "lower-case"),
}


def attacks() -> Mapping[str, tuple[Graph, Any, str]]:
    """{name: (graph, inputs, a word of the answer)}."""
    every: dict[str, tuple[Graph, Any, str]] = {}
    every |= {name: (one, LOGPROBS, f"op not allowed: {name}") for name, one in NAMES.items()}
    every |= {name: (one, LOGPROBS, words) for name, (one, words) in {**ARGUMENTS, **SHAPES}.items()}
    every |= {f"{name} blown up": (one, LOGPROBS, "") for name, one in BLOW_UPS.items()}
    sums = call("torch.exp", "@logprobs")
    return every | {f"inputs: {name}": (sums, one, words) for name, (one, words) in INPUTS.items()}
