"""The fingerprint of a worker's arithmetic: what the bits of a run depend on besides its recipe.

Processors round alike in single additions, products and roots, but each family of matrix kernels adds up in an order of
its own, and each level of NumPy's loops and of the C library has other polynomials for exp, tanh and log. The
fingerprint has a digest of what each operation gives for fixed numbers, at the shapes of the recipe. Where the digests
of two processes are equal, so are the bits that they train.
"""

from __future__ import annotations

import functools
import hashlib
import math
import platform
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from distbp.errors import InputError
from distbp.kernels import c_library, described, processor
from distbp.nn import Layout
from distbp.randomness import generator
from distbp.train.recipe import Recipe
from distbp.version import __version__

_VERSIONS = ("distbp", "numpy")  # that must be the same on all workers
_MOST_PRODUCTS = 1 << 21  # of two numbers, in one matrix product: more than those that have kernels for small ones
_LEAST = 16  # rows or columns, to which an output is cut: a single row has other kernels
_LONGEST_SUM = 1 << 14
_MOST_SHAPES = 8
_NAMED = 3  # workers, in a message
_VECTOR = 4099  # a prime: kernels and loops have a rest to deal with


class Arithmetic(BaseModel):
    """What a worker computes with, and digests of what that gives.

    Attributes
    ----------
    processor, kernels, versions, threads:
        The names of the processor, and of the kernels of NumPy and its BLAS; versions of what computes; BLAS threads.
    digests:
        For each kind of operation, that of its results.
    """

    model_config = ConfigDict(frozen=True)
    processor: str
    kernels: str
    versions: dict[str, str]
    threads: int
    digests: dict[str, str]

    def differences(self, other: Arithmetic) -> list[str]:
        """Return the operations that give other bits than with ``other``."""
        names = {**self.digests, **other.digests}
        return [name for name in names if self.digests.get(name) != other.digests.get(name)]

    def __str__(self) -> str:
        return f"{self.processor}, {self.kernels}, {self.versions.get('C library')}"


def arithmetic_of(recipe: Recipe, layout: Layout, n_rows: int) -> Arithmetic:
    """Return the arithmetic of this process for networks of ``layout`` and microbatches of ``n_rows``.

    Call it where the threads of the BLAS are limited as in training.
    """
    shapes = {segment.parameter.shape for segment in layout.segments if len(segment.parameter.shape) == 2}
    largest = sorted(shapes, key=math.prod, reverse=True)[:_MOST_SHAPES]
    return _measured(tuple(largest), n_rows, layout.dtype, recipe.blas_threads)


@functools.cache
def _measured(
    shapes: tuple[tuple[int, int], ...], n_rows: int, dtype: np.dtype[np.floating], threads: int
) -> Arithmetic:
    products = [product for shape in shapes for product in _products(n_rows, *shape)]
    longest = max((k * max(m, n) for m, n, k, _ in products), default=0)
    numbers = _numbers(longest + _VECTOR, dtype)
    digests = {"matrix products": _digest(_product(numbers, *product) for product in products)}
    digests |= {name: _digest(make(numbers[:_VECTOR])) for name, make in _OPERATIONS.items()}
    versions = {"distbp": __version__, "numpy": np.__version__}
    versions |= {"Python": platform.python_version(), "C library": c_library()}
    return Arithmetic(processor=processor(), kernels=described(), versions=versions, threads=threads, digests=digests)


def _numbers(n: int, dtype: np.dtype[np.floating]) -> np.ndarray:
    """Return ``n`` numbers in [-1, 1) with all bits of the mantissa in use, made by integer arithmetic alone."""
    z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # as in SplitMix64 (Steele et al., OOPSLA 2014)
    n_bits = np.finfo(dtype).nmant + 1
    scaled = (z >> np.uint64(64 - n_bits)).astype(dtype)  # exact, as is all that follows
    scaled *= dtype.type(2.0 ** (1 - n_bits))
    scaled -= dtype.type(1.0)
    return scaled


Product = tuple[int, int, int, str]


def _products(n_rows: int, n_out: int, n_in: int) -> list[Product]:
    """Return the matrix products of a dense layer, as (rows and columns of the output, terms of a sum, which)."""
    whole = [(n_rows, n_out, n_in, "y"), (n_out, n_in, n_rows, "dW"), (n_rows, n_in, n_out, "dx")]
    return [(*_cut(m, n, min(k, _LONGEST_SUM)), which) for m, n, k, which in whole]


def _cut(m: int, n: int, k: int) -> tuple[int, int, int]:
    """Return an output of fewer rows or columns, where making the factors or the product would take long."""
    while math.prod(max(size, _LEAST) for size in (m, n, k)) > _MOST_PRODUCTS and max(m, n) > _LEAST:
        m, n = (m, max(_LEAST, n // 2)) if n >= m else (max(_LEAST, m // 2), n)
    return m, n, k


def _product(numbers: np.ndarray, m: int, n: int, k: int, which: str) -> np.ndarray:
    """Return a product (m, k) (k, n), laid out in memory as ``distbp.nn.Dense`` has it."""
    a, b = numbers[: m * k], numbers[len(numbers) - k * n :]
    if which == "y":  # x Wᵀ
        return np.dot(a.reshape(m, k), b.reshape(n, k).T)
    if which == "dW":  # dyᵀ x
        return np.dot(a.reshape(k, m).T, b.reshape(k, n))
    return np.dot(a.reshape(m, k), b.reshape(k, n))  # dy W


def _digest(arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def _positive(x: np.ndarray) -> np.ndarray:
    return np.abs(x) + np.finfo(x.dtype).eps


def _vector_products(x: np.ndarray) -> list[np.ndarray]:
    W = x[: 61 * 67].reshape(61, 67)
    return [np.dot(x, x[::-1].copy()), np.dot(W, x[:67]), np.dot(x[:61], W)]


def _draws(_: np.ndarray) -> list[np.ndarray]:
    draw = generator(0, "arithmetic")
    return [draw.standard_normal(257), draw.random(257, dtype=np.float32), draw.permutation(257)]


def _in_c(_: np.ndarray) -> list[np.ndarray]:
    """Return what Python's own functions give, in which schedules and Adam's corrections are computed."""
    numbers = _numbers(1009, np.dtype(np.float64)).tolist()
    return [np.array([f(v) for v in numbers]) for f in (math.cos, math.exp, lambda v: 0.9**v)]


_OPERATIONS: dict[str, Callable[[np.ndarray], list[np.ndarray]]] = {
    "vector products": _vector_products,
    "exp": lambda x: [np.exp(8 * x)],
    "tanh": lambda x: [np.tanh(4 * x)],
    "expm1": lambda x: [np.expm1(2 * x)],
    "log": lambda x: [np.log(_positive(x))],
    "log1p": lambda x: [np.log1p(_positive(x))],
    "sqrt": lambda x: [np.sqrt(_positive(x))],
    "division": lambda x: [x / _positive(x[::-1])],
    "sums": lambda x: [np.add.reduce(x), np.add.reduce(x[: 61 * 67].reshape(61, 67), axis=0), np.einsum("i,i", x, x)],
    "draws": _draws,
    "the C library": _in_c,
}


def require_one(workers: list[Arithmetic], names: list[str], bits: str) -> None:
    """Raise InputError where ``workers`` of these ``names`` do not all compute alike."""
    first = workers[0]
    for own, name in zip(workers, names, strict=True):
        for package in _VERSIONS:
            if own.versions[package] != first.versions[package]:
                given = f"{own.versions[package]} on worker {name}"
                expected = f"{package} {first.versions[package]}, as on worker {names[0]}"
                raise InputError(expected, given, "install the same there", "workers")
    differences = dict.fromkeys(name for own in workers for name in own.differences(first))
    if not differences:
        return
    given = " and ".join(f"{who}: {own}" for own, who in _grouped(workers, names))
    remedy = "leave out the machines that differ"
    if bits != "portable":
        remedy = f"take `bits: portable`, which all x86-64 processors with AVX2 and FMA can have, or {remedy}"
    raise InputError(
        "all workers to compute the same bits",
        f"{' and '.join(differences)} that differ between {given}",
        remedy,
        "workers",
    )


def require_same(earlier: Sequence[Arithmetic], now: Arithmetic) -> None:
    """Raise InputError where ``now`` gives other bits than what has computed a run last, if that is known."""
    differences = earlier[-1].differences(now) if earlier else []
    if differences:
        raise InputError(
            f"what has computed the run so far ({earlier[-1]})",
            f"{' and '.join(differences)} that differ from it ({now})",
            "go on where the arithmetic is the same or, to weights that are those of neither, with "
            "--accept-other-arithmetic, or in Python fit(..., accept_other_arithmetic=True)",
            "a run that goes on",
        )


def _grouped(workers: list[Arithmetic], names: list[str]) -> list[tuple[Arithmetic, str]]:
    """Return one worker of each kind, and who is of it, in words."""
    kinds: list[tuple[Arithmetic, list[str]]] = []
    for own, name in zip(workers, names, strict=True):
        same = next((members for kind, members in kinds if kind.digests == own.digests), None)
        if same is None:
            kinds.append((own, [name]))
        else:
            same.append(name)
    return [(kind, _in_words(members)) for kind, members in kinds]


def _in_words(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"worker {', '.join(names[:_NAMED])}{more}"
