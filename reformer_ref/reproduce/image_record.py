"""How the records of the claims about images hold them."""

import base64
import zlib

import numpy as np

BASELINE = "table of 10 neighbours"


def packed(array):
    """An array of uint8 as JSON values: its shape, and its bytes compressed, in base 64."""
    return {"shape": list(array.shape), "zlib64": base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()}


def unpacked(values):
    """The inverse of `packed`."""
    data = zlib.decompress(base64.b64decode(values["zlib64"]))
    return np.frombuffer(data, np.uint8).reshape(values["shape"])
