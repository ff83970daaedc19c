"""What a function of tensors computes, as a graph; its random numbers apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.overrides import TorchFunctionMode

# Of a step of a program, with Pyro and autograd around it; of one that Torch's interpreter runs;
# and of a number that either makes.
_NS_PER_STEP, _NS_INTERPRETED, _NS_PER_NUMBER = 10_000.0, 1_700.0, 1.0

_ELU = torch.ops.aten.elu.default
_INDEX = torch.ops.aten.index.Tensor
_CROSS_ENTROPY = torch.ops.aten.binary_cross_entropy_with_logits.default

_LEAVING = (
    torch.Tensor.numpy,
    torch.Tensor.tolist,
    torch.Tensor.__array__,
    torch.Tensor.__repr__,
)
# They read the numbers of tensors in lists where no mode sees it.
_FROM_LISTS = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)

TensorFunction = Callable[..., Sequence[Tensor]]


class NotRecordableError(RuntimeError):
    """A function does what no graph can hold; the message says what."""


@dataclass(frozen=True)
class Recording:
    """A function of tensors as two graphs, which follow one another.

    Args:
        draws: draws all random numbers, in the order of the function: `(*inputs, *constants)`.
        rest: computes all else: `(*inputs, *constants, *draws)`.
        constants: tensors that the function reads though they are no inputs, such as parameters;
            they are passed anew at every call, so what is changed in place is seen.
    """

    draws: GraphModule
    rest: GraphModule
    constants: tuple[Tensor, ...]

    @property
    def work(self) -> float:
        """About how many nanoseconds a call takes that is not compiled, on one core of a CPU."""
        return work_of(self.rest)


def work_of(module: GraphModule, *, is_interpreted: bool = False) -> float:
    """About how many nanoseconds it takes on a CPU's core, by the program under Pyro or as is."""
    per_step = _NS_INTERPRETED if is_interpreted else _NS_PER_STEP
    return sum(_work(node, per_step) for node in module.graph.nodes)


def traced(function: TensorFunction, inputs: Sequence[Tensor]) -> GraphModule:
    """What a function does with tensors, step by step: to the same bits, without the function.

    Whatever it does besides, such as branches on Python's numbers, stays as it was in this run.

    Args:
        function: returns tensors.
        inputs: tensors like those that it will be called with.

    Raises:
        NotRecordableError: it branches on what it computes, makes tensors of shapes that depend on
            that, or computes outside of torch.
    """

    def of_tensors(*tensors: Tensor) -> Sequence[Tensor]:  # of a method `self` would be an input
        results = function(*tensors)
        mode: Any = get_proxy_mode()
        _expect_fixed_shapes(mode.tracer)  # what only lends its size is dropped from it next
        return results

    try:
        with _ItemsAsTensors():
            return make_fx(of_tensors)(*inputs)
    except Exception as error:  # whatever a program raises that was not written for it
        raise NotRecordableError(in_short(error)) from error


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors are the same to the last bit, as what is traced promises."""
    return bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())


def record(function: TensorFunction, inputs: Sequence[Tensor]) -> Recording:
    """Run a function once on such inputs, and keep what it does with tensors.

    Whatever it does besides, such as branches on Python's numbers, stays as it was in this run.
    Random numbers are drawn in it: isolate the generator.

    Args:
        function: returns tensors.
        inputs: tensors like those that it will be called with.

    Raises:
        NotRecordableError: it branches on what it computes, or changes tensors in place that are
            not its own.
    """
    graph = traced(function, inputs)
    try:
        constants = lift_constants(graph)
        with torch.no_grad():
            functional = make_fx(
                torch.func.functionalize(graph),
                tracing_mode="fake",
                decomposition_table={_CROSS_ENTROPY: _cross_entropy, _ELU: _elu},
            )(*inputs, *(constant.detach() for constant in constants))
    except Exception as error:  # whatever a program raises that was not written for it
        raise NotRecordableError(in_short(error)) from error
    _expect_no_changes(functional)
    return Recording(*_apart(functional), constants)


class _ItemsAsTensors(TorchFunctionMode):
    """Lets `item()` return a tensor, with which Python goes on to compute as with a number.

    What leaves torch otherwise would stay in the graph as it was when that was recorded.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.item:
            number = args[0].detach()  # Python's numbers are of double precision
            return number.double() if number.is_floating_point() else number
        if func in _LEAVING:
            raise NotRecordableError("it computes outside of torch, as by NumPy")
        if func in _FROM_LISTS and any(map(_holds_tensors, args)):
            raise NotRecordableError("it makes a tensor of a list of them: use torch.stack")
        return func(*args, **kwargs or {})


def _holds_tensors(values: Any) -> bool:
    """Whether a list has a tensor in it, at any depth."""
    is_list = isinstance(values, list | tuple)
    return is_list and any(isinstance(v, Tensor) or _holds_tensors(v) for v in values)


def _expect_fixed_shapes(tracer: Any) -> None:
    """Check that no step's shape depends on numbers that change, such as that of `z[z > 0]`.

    These are the inputs, draws and parameters. Python reads shapes without asking: such a size
    would stay what it was.

    Raises:
        NotRecordableError: one does.
    """
    dependent: set[Node] = set()
    for node in tracer.graph.nodes:
        tags = getattr(node.target, "tags", ())
        is_new = node.op == "placeholder" or torch.Tag.nondeterministic_seeded in tags
        is_parameter = node.op == "get_attr" and getattr(tracer.root, node.target).requires_grad
        if is_new or is_parameter or not dependent.isdisjoint(node.all_input_nodes):
            dependent.add(node)
            if torch.Tag.dynamic_output_shape in tags and (
                node.target is not _INDEX or any(map(_is_bool, dependent & set(_indices(node))))
            ):
                raise NotRecordableError("it makes a tensor whose shape depends on its numbers")


def _indices(node: Node) -> Sequence[Node]:
    indices: Any = node.args[1]
    return [index for index in indices if isinstance(index, Node)]


def _is_bool(node: Node) -> bool:
    return node.meta["val"].dtype in (torch.bool, torch.uint8)


def _cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = 1,
) -> Tensor:
    """Elementwise −log p(target), to the rounding of 1, without a `log1p`.

    As Inductor compiles it, that takes longer than all else in the likelihood of a pixel.
    """
    if weight is not None or pos_weight is not None or reduction != 0:
        return NotImplemented
    log_sum = ((-logits.abs()).exp() + 1).log()
    return 0.5 * logits.abs() + log_sum - (target - 0.5) * logits


def _elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    """ELU to the rounding of 1, without an `expm1`, which is as slow."""
    return scale * torch.where(x > 0, x, alpha * ((x.clamp(max=0) * input_scale).exp() - 1))


def lift_constants(module: GraphModule) -> tuple[Tensor, ...]:
    """Make inputs of the tensors that the graph holds; returns them."""
    graph, lifted = module.graph, {}
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        tensor = getattr(module, node.target)
        if id(tensor) not in lifted:
            with graph.inserting_after(last):
                last = graph.placeholder(f"constant_{len(lifted)}")
            lifted[id(tensor)] = tensor, last
        node.replace_all_uses_with(lifted[id(tensor)][1])
        graph.erase_node(node)
    module.recompile()
    return tuple(tensor for tensor, _ in lifted.values())


def _expect_no_changes(functional: GraphModule) -> None:
    """Check that no input is written to, such as the statistics of a batch normalization.

    Raises:
        NotRecordableError: one is.
    """
    for node in functional.graph.nodes:
        if node.op == "call_function" and node.target is torch.ops.aten.copy_.default:
            raise NotRecordableError("it changes a tensor in place that is not its own")


def _apart(functional: GraphModule) -> tuple[GraphModule, GraphModule]:
    """The graph of all random numbers, and that of the rest, which takes them."""
    graph = functional.graph
    random = [node for node in graph.nodes if _is_random(node)]
    draws, copies, needed = Graph(), {}, _ancestors(random)
    for node in graph.nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = draws.node_copy(node, copies.__getitem__)
    draws.output(tuple(copies[node] for node in random))
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for number, node in enumerate(random):
        with graph.inserting_after(last):
            last = graph.placeholder(f"draw_{number}")
        last.meta = dict(node.meta)
        node.replace_all_uses_with(last)
    for node in reversed(random):
        graph.erase_node(node)
    graph.eliminate_dead_code()
    return GraphModule(functional, draws), GraphModule(functional, graph)


def _work(node: Node, per_step: float) -> float:
    """Of a step of a graph: it is dispatched, and it goes over its result; products cost more."""
    if node.op != "call_function":
        return 0.0
    results = [part for part in _as_tuple(node.meta.get("val")) if isinstance(part, Tensor)]
    return per_step + _NS_PER_NUMBER * sum(part.numel() for part in results)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _is_random(node: Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return node.op == "call_function" and torch.Tag.nondeterministic_seeded in tags


def _ancestors(nodes: Sequence[Node]) -> set[Node]:
    """The nodes and all that they are computed from."""
    found, left = set(), list(nodes)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += node.all_input_nodes
    return found


def in_short(error: Exception) -> str:
    """The first sentence of an error."""
    if "_local_scalar_dense" in str(error):
        return "it looks at a number that it computes, as a branch does"
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line.split(". ")[0].rstrip(".")
