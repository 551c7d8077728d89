"""The kernels that NumPy and its BLAS compute with, on which the bits of a run depend besides its recipe.

NumPy's wheels hold several versions of their loops, and OpenBLAS several families of matrix kernels. Each takes the
fastest that the processor has, and they round differently. With ``bits: portable`` a run takes those that every x86-64
processor with AVX2 and FMA has. They are chosen in the environment, before NumPy is loaded; so this file imports no
NumPy at its top.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import shlex
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from distbp.errors import InputError

FAMILY = "Haswell"
"""OpenBLAS's name for the kernels that need AVX2 and FMA."""

_LEVELS = "X86_V4 AVX512_ICL AVX512_SPR"
_FEATURES = "AVX512F AVX512CD AVX512_KNL AVX512_KNM AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL"
_UP_TO_AVX2 = {"SSE3", "SSSE3", "SSE41", "POPCNT", "SSE42", "AVX", "F16C", "FMA3", "AVX2", "X86_V2", "X86_V3"}
_ACTIVE = 4  # glibc: of a CPUID leaf, four registers as they are, then what of them may be used
_BITS = {"FMA": (0, 2, 12), "AVX2": (1, 1, 5)}  # glibc's number of the leaf (CPUID 1 and 7), register, bit


def portable_environment() -> dict[str, str]:
    """Return the variables that choose the portable kernels, for the NumPy that is installed.

    NumPy warns of names that it does not know, and these were three lists so far.
    """
    numpy = tuple(map(int, metadata.version("numpy").split(".")[:2]))
    above_avx2 = _LEVELS if numpy >= (2, 4) else f"{_FEATURES} AVX512_SPR" if numpy >= (2, 3) else _FEATURES
    return {"OPENBLAS_CORETYPE": FAMILY, "NPY_DISABLE_CPU_FEATURES": above_avx2, "NPY_ENABLE_CPU_FEATURES": ""}


def lacking() -> list[str]:
    """Return what this processor lacks for the portable kernels; on an unsuitable one they would end the process."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ["x86-64"]
    try:
        leaf: Any = ctypes.CDLL(None).__x86_get_cpuid_feature_leaf  # glibc 2.33; true of emulators, too
    except (AttributeError, OSError, TypeError):
        return _lacking_in_flags()
    leaf.restype = ctypes.POINTER(ctypes.c_uint32 * (2 * _ACTIVE))
    return [name for name, (n, register, bit) in _BITS.items() if not leaf(n).contents[_ACTIVE + register] >> bit & 1]


def _lacking_in_flags() -> list[str]:
    flags = _cpuinfo("flags").split()
    return [name for name in _BITS if name.lower() not in flags]


def processor() -> str:
    """Return the name of this machine's processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def c_library() -> str:
    """Return name and version of the C library, as in ``glibc 2.36``."""
    with suppress(AttributeError, OSError, ValueError):
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    return " ".join(platform.libc_ver()).strip()


def _cpuinfo(key: str) -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def choose_portable() -> bool:
    """Have the portable kernels taken when NumPy is loaded; return whether there is time and a processor for that."""
    if "numpy" in sys.modules or lacking():
        return False
    os.environ |= portable_environment()
    return True


def blas() -> dict[str, Any]:
    """Return what threadpoolctl says of the BLAS that NumPy uses; nothing where it does not know it."""
    import numpy as np
    from threadpoolctl import threadpool_info

    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    beside = Path(np.__file__).parent.parent / "numpy.libs"
    own = [library for library in libraries if Path(library["filepath"]).parent == beside]
    return next(iter([*own, *libraries]), {})


def loops() -> list[str]:
    """Return the names of the optional instructions that NumPy's loops use, the newest last."""
    core = importlib.import_module("numpy._core._multiarray_umath")
    return [name for name in core.__cpu_dispatch__ if core.__cpu_features__[name]]


def described() -> str:
    """Return the names of the kernels in use, as in ``openblas 0.3.31 Haswell, NumPy loops X86_V3``."""
    library = blas()
    names = [library.get(key) or "" for key in ("internal_api", "version", "architecture")]
    return f"{' '.join(filter(None, names)) or 'an unknown BLAS'}, NumPy loops {(loops() or ['baseline'])[-1]}"


def require(bits: str) -> None:
    """Raise InputError where this process does not compute with the kernels of ``bits: portable``, if that is asked."""
    where = "bits: portable"
    if bits != "portable":
        return
    if lacks := lacking():
        given = f"{processor()}, without {' and '.join(lacks)}"
        remedy = "leave out this machine, or take `bits: fastest`"
        raise InputError("an x86-64 processor with AVX2 and FMA", given, remedy, where)
    if blas().get("architecture") == FAMILY and set(loops()) <= _UP_TO_AVX2:
        return
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in portable_environment().items())
    remedy = (
        "they are chosen before NumPy is loaded: begin a script, or a notebook that you start anew, with `import "
        f"distbp.portable`, or start Python with {variables}; a NumPy that is not the wheel of PyPI may lack them"
    )
    raise InputError(f"OpenBLAS with the kernels {FAMILY}, and NumPy's loops up to AVX2", described(), remedy, where)
