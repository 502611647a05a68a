"""How the records of the claims about images hold them."""

import base64
import math
import zlib

import numpy as np
from reformer_ref._arguments import UNCLEAR, shown

BASELINE = "table of 10 neighbours"


def packed(array):
    """An array of uint8 as JSON values: its shape, and its bytes compressed, in base 64."""
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"array must be an array of uint8, got {getattr(array, 'dtype', type(array).__name__)}")
    return {"shape": list(array.shape), "zlib64": base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()}


def unpacked(values):
    """The inverse of `packed`. ValueError for what that has not made."""
    try:
        shape, data = values["shape"], base64.b64decode(values["zlib64"], validate=True)
        data = zlib.decompressobj().decompress(data, math.prod(shape) + 1)  # no more than is wanted
        return np.frombuffer(data, np.uint8).reshape(shape)
    except (*UNCLEAR, zlib.error) as error:
        raise ValueError(f"values must be what `packed` returns, got {shown(values)}: {error}") from None
