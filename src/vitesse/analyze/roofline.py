"""The roofline: how fast an operator can be here, from its arithmetic and the bytes that it moves.

Williams et al., CACM 2009. A machine is a rate of arithmetic, measured with large matrix products, and one of
memory, measured as in STREAM. An operator with fewer operations a byte than their ratio, the ridge, is bound
by memory. Operators whose tensors stay in a cache can exceed the roof of the main memory.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from vitesse.analyze.kinds import VIEWS, word_of
from vitesse.analyze.profile import Operator, Profile, Shaped
from vitesse.bench.limits import best_gemm_rate

MEMORY_BYTES = 3 * 2**27
"""Of the three arrays that are streamed through main memory: more than most caches hold."""
PIECE_BYTES = 3 * 2**17
"""Of what is streamed at a time; it stays in the cache of one core where it is streamed again and again."""
MIN_PIECES = 1000

PER_ELEMENT = {"elementwise": 1, "pooling": 1, "normalisation": 5, "softmax": 5}
"""Floating-point operations for each element of the larger side, by convention: mean, variance, difference,
product and sum of a normalisation; maximum, difference, exponential, sum and quotient of a softmax."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this machine does at best with so many threads.

    Attributes:
        flops_per_s: floating-point operations, two for each multiply-accumulate, in large matrix products.
        bytes_per_s: read and written, with arrays in main memory.
        cache_bytes_per_s: the same with arrays in the cache of each core.
    """

    threads: int
    flops_per_s: float
    bytes_per_s: float
    cache_bytes_per_s: float

    @property
    def ridge(self) -> float:
        """Operations a byte from which on arithmetic is the bound."""
        return self.flops_per_s / self.bytes_per_s


@dataclass(frozen=True, kw_only=True)
class Placement:
    """An operator under the roof.

    Attributes:
        flops, nbytes: floating-point operations, and bytes read and written once each.
        bound: `memory` or `compute`: which side of the ridge it is on.
        attained: share of the roof over it that it reaches; above 1 where a cache is faster than memory, None
            for what does no arithmetic and moves nothing.
    """

    flops: int
    nbytes: int
    bound: str
    attained: float | None

    @property
    def intensity(self) -> float:
        """Floating-point operations a byte; 0 for what does none."""
        return self.flops / self.nbytes if self.nbytes else 0.0


def place(operator: Operator, machine: Machine) -> Placement:
    """Where an operator is under the machine's roof."""
    flops, nbytes = flops_of(operator), bytes_of(operator)
    best_s = max(flops / machine.flops_per_s, nbytes / machine.bytes_per_s)
    return Placement(
        flops=flops,
        nbytes=nbytes,
        bound="compute" if flops > machine.ridge * nbytes else "memory",
        attained=best_s / operator.seconds if best_s and operator.seconds else None,
    )


def below_ridge_share(profile: Profile, machine: Machine) -> float:
    """Share of the operators' time in those that the roofline calls bound by memory."""
    below = sum(o.seconds for o in profile.operators if place(o, machine).bound == "memory")
    return below / profile.operators_s if profile.operators_s else 0.0


def bytes_of(operator: Operator) -> int:
    """Bytes of all inputs and outputs, once each; none for what only looks at its input in another shape."""
    if word_of(operator.type) in VIEWS:
        return 0
    return sum(tensor.nbytes for tensor in (*operator.inputs, *operator.outputs))


def flops_of(operator: Operator) -> int:
    """Floating-point operations: two for each multiply-accumulate, see `PER_ELEMENT` for other kinds.

    Activations and sums that an engine computes within a convolution or product are not counted.
    """
    larger = max((tensor.size for tensor in (*operator.inputs, *operator.outputs)), default=0)
    operands = [tensor for tensor in operator.inputs if len(tensor.sides) >= 2]
    if len(operands) < 2:
        return PER_ELEMENT.get(operator.kind, 0) * larger
    if operator.kind == "conv":
        return _of_convolution(operator, operands)
    if operator.kind == "matmul":
        first = 1 if word_of(operator.type) in ("addmm", "baddbmm") and len(operands) > 2 else 0
        return _of_product(operands[first], operands[first + 1], operator.outputs)
    if operator.kind == "attention":
        return _of_attention(operator, operands)
    return PER_ELEMENT.get(operator.kind, 0) * larger


def _of_convolution(operator: Operator, operands: Sequence[Shaped]) -> int:
    """Every element of the output takes the weights of one output channel."""
    image, weights = operands[:2]
    grouped = len(weights.sides) > len(image.sides)  # OpenVINO's have the group first
    channels = weights.sides[0] * (weights.sides[1] if grouped else 1)
    positions = image if "transpose" in word_of(operator.type) else operator.outputs[0]
    return 2 * positions.size * weights.size // channels


def _of_product(left: Shaped, right: Shaped, outputs: Sequence[Shaped]) -> int:
    """Of (M, K) and (K, N) to (M, N), either of them transposed: MKN is the root of the sizes' product."""
    batches = min(math.prod(left.sides[:-2]), math.prod(right.sides[:-2]))
    sizes = left.size * right.size * sum(output.size for output in outputs)
    return 2 * math.isqrt(sizes // max(1, batches))


def _of_attention(operator: Operator, operands: Sequence[Shaped]) -> int:
    """Both products of queries (..., N, D), keys and values; torch has a mask last, OpenVINO third."""
    if len(operands) < 3:
        return 0
    query, key = operands[:2]
    value = operands[-1] if word_of(operator.type) == "subgraph" else operands[2]
    batches, width = max(1, math.prod(query.sides[:-2])), query.sides[-1]
    keys = key.size // (batches * width)
    value_width = value.size // (batches * keys)
    return 2 * (query.size // width) * keys * (width + value_width)


def measure_machine(threads: int, precision: str = "fp32") -> Machine:
    """What this machine does at best, in a few seconds.

    Both rates are of pieces of work so short that most of them run undisturbed on a busy machine too, as most
    operators do.

    Args:
        threads: that compute and move.
        precision: `fp32` or `int8`: of the products.

    Raises:
        MissingExtraError: the extra `export` is not installed.
    """
    return Machine(
        threads=threads,
        flops_per_s=2 * best_gemm_rate(precision, threads),
        bytes_per_s=stream_rate(MEMORY_BYTES, threads),
        cache_bytes_per_s=stream_rate(PIECE_BYTES * threads, threads),
    )


def stream_rate(nbytes: int, threads: int) -> float:
    """Bytes a second that sums of two arrays into a third read and write, as STREAM's `add`.

    Args:
        nbytes: of the three arrays, which are gone through in pieces; small ones stay in a cache.
        threads: each takes its part of them.
    """
    count = max(1, nbytes // threads // PIECE_BYTES)
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(_stream, [count] * threads))


def _stream(count: int) -> float:
    """Bytes a second of one thread: the median of its pieces."""
    a, b, c = (np.ones((count, PIECE_BYTES // 3 // 4), np.float32) for _ in range(3))
    samples = []
    for index in range(max(count, MIN_PIECES)):
        row = index % count
        begin = time.perf_counter()
        np.add(a[row], b[row], out=c[row])
        samples.append(time.perf_counter() - begin)
    return PIECE_BYTES / statistics.median(samples)
