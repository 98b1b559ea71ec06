"""How the Numba kernels are compiled, and kept on disk."""

import contextlib
import functools
import hashlib
import os
import pickle
import warnings
from pathlib import Path

from numba import njit, typeof
from numba.core import event
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import register_pass
from numba.core.lowering import Lower
from numba.core.serialize import dumps
from numba.core.typed_passes import NativeLowering

from .compile_notice import CompileNotice


class _WideLower(Lower):
    """Numba's translation of a function to LLVM, which may use the widest vectors there are.

    For Intel's processors with AVX-512 LLVM otherwise keeps to half of their width.
    """

    def setup_function(self, fndesc):
        super().setup_function(fndesc)
        # The set's own `add` refuses attributes that have values.
        set.add(self.function.attributes, '"prefer-vector-width"="512"')


@register_pass(mutates_CFG=True, analysis_only=False)
class _WideLowering(NativeLowering):
    _name = "perceptual_losses_lowering"
    lowering_class = _WideLower


class _Compiler(Compiler):
    """Numba's compiler with `_WideLower`."""

    def define_pipelines(self):
        pipelines = super().define_pipelines()
        for pipeline in pipelines:
            pipeline.passes = [
                (_WideLowering if step is NativeLowering else step, name)
                for step, name in pipeline.passes
            ]
            pipeline.finalize()
        return pipelines


# Fused multiply-adds, and sums in any order; NaN and infinity keep their meaning.
OPTIONS = {
    "nogil": True,
    "fastmath": {"contract", "reassoc", "nsz"},
    "error_model": "numpy",
    # Nothing is allocated inside, and counting references to every slice costs as much as a few
    # hundred pixels of a row.
    "_nrt": False,
    "pipeline_class": _Compiler,
}


# Only other kernels call these: no wrapper for calls from Python is compiled.
_INTERNAL = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
kernel = njit(**_INTERNAL, **OPTIONS)
# Where the call would cost as much as the work.
inlined = njit(**_INTERNAL, forceinline=True, **OPTIONS)
# In the order that is written, where another would round what is exact.
ordered = njit(**_INTERNAL, forceinline=True, **{**OPTIONS, "fastmath": False})
# The same, except that a product and a sum are rounded once.
contracted = njit(**_INTERNAL, forceinline=True, **{**OPTIONS, "fastmath": {"contract"}})


class _Sealed(CompileResultCacheImpl):
    """Machine code with its digest: damaged code would run all the same."""

    def reduce(self, compiled):
        code = dumps(super().reduce(compiled))
        return hashlib.sha256(code).digest(), code

    def rebuild(self, target_context, payload):
        digest, code = payload
        if hashlib.sha256(code).digest() != digest:
            raise ValueError("the code has not its digest")
        return super().rebuild(target_context, pickle.loads(code))


class _Cache(FunctionCache):
    """Numba's, in which a file that cannot be used is as good as none."""

    _impl_class = _Sealed

    def __init__(self, function):
        super().__init__(function)
        # Numba looks for changes only in the entry's file, and kernels call those of others.
        folders = Path(function.__code__.co_filename).parent, Path(__file__).parent
        self._cache_file._source_stamp = tuple(map(_digest, folders))

    def load_overload(self, signature, target_context):
        try:
            found = super().load_overload(signature, target_context)
            # Two processes that save at once may leave the index of one with the code of the other.
            if found is None or found.signature.args == signature:
                return found
        except Exception:  # Whatever reading a damaged file raises.
            pass
        # Saving would read the index again.
        with contextlib.suppress(OSError):
            self.flush()
        return None

    def save_overload(self, signature, compiled):
        try:
            super().save_overload(signature, compiled)
        except OSError as error:
            warnings.warn(
                f"compiled kernels cannot be kept in {self.cache_path} ({error}): each process "
                "compiles them again. Make room there, or set NUMBA_CACHE_DIR to another folder.",
                RuntimeWarning,
                stacklevel=2,
            )


@functools.cache
def _digest(folder):
    """The digest of all kernels in a folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def entry(function):
    """A kernel that Python calls, kept on disk."""
    _notice.watch(function)
    compiled = njit(**OPTIONS)(function)
    try:
        compiled.enable_caching()
        compiled._cache = _Cache(function)
    except (OSError, RuntimeError):
        # No folder can be written to: each process compiles for itself.
        return njit(**OPTIONS)(function)
    return compiled


def compiled_for(kernel, arguments):
    """The compiled kernel for arguments of these types, which its calls do not look at again.

    Numba looks at those of `march` for a third of the time that a small image takes.
    """
    return kernel.compile(tuple(map(typeof, arguments)))


_notice = CompileNotice()
event.register("numba:compile", _notice)

# A process forked while another thread compiles would wait for that thread, which it does not have.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )
