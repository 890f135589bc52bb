"""Functions compiled by numba, and kept compiled from one process to the next."""

import warnings
from typing import no_type_check

from numba import njit


@no_type_check
def compiled(function, **options):
    """Compile, and keep the result in ``__pycache__`` beside the function's file, or in the user's cache.

    Numba compiles anew when that file has changed, but not when one has that it imports from.

    Args:
        function: in numba's Python.
        options: of `numba.njit`.
    """
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError as error:
        warnings.warn(f"kernels are compiled anew in each process (see NUMBA_CACHE_DIR): {error}", stacklevel=3)
        return njit(**options)(function)
