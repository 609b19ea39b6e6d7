"""Tables for rotary position embedding over time, height and width."""

import numpy as np
from numpy.typing import NDArray


def axis_table(positions: NDArray[np.int64], channels: int, theta: float = 10000.0) -> NDArray[np.float32]:
    """Cosine and sine of each position's angles along one axis.

    ``positions``: int64 [n]. ``channels``: complex channels of this axis, one of the manifest's ``rope_split``.
    Complex channel k turns by ``theta ** (-k / channels)`` a position, Wan 2.1's ``rope_params`` with a dimension of
    ``2 * channels``. Angles are float64, since float32 ones lose digits at positions in the thousands.
    Returns float32 [n, channels, 2].
    """
    frequencies = 1.0 / np.power(theta, np.arange(channels, dtype=np.float64) / channels)
    angles = positions.astype(np.float64)[:, None] * frequencies
    return np.stack((np.cos(angles), np.sin(angles)), axis=-1).astype(np.float32)
