"""Seeded noise for the sampler: the same bits on every platform and for every backend.

Philox is a counter-based generator, so the noise of any chunk and step is made without that of the ones before it.
The way from its integers to normal numbers uses only additions, products, quotients and square roots, which IEEE 754
rounds exactly: ``numpy.log`` and ``numpy.cos`` differ in the last bit between processors, and numpy does not promise
that ``Generator.standard_normal`` stays the same between versions.
"""

from collections.abc import Sequence
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

SEED_LIMIT: Final = 2**63
_COUNTER_LIMIT: Final = 2**64
_LN2: Final = 0.6931471805599453

# Wichura, "Algorithm AS 241: The Percentage Points of the Normal Distribution" (Applied Statistics 37, 1988), PPND16:
# numerator and denominator, lowest power first, for the centre, the shoulders and the tails.
_CENTRE: Final = (
    (3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
     4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3),
    (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
     2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3),
)  # fmt: skip
_SHOULDER: Final = (
    (1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
     1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
     1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
)  # fmt: skip
_TAIL: Final = (
    (6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
     2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7),
    (1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
     7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15),
)  # fmt: skip


def chunk_noise(seed: int, chunk: int, step: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Standard normal noise for one denoise pass.

    ``seed`` is in 0 .. 2**63 - 1; ``chunk`` and ``step`` count from 0. Returns float32 of ``shape``; a smaller shape
    gets the beginning of a larger one's numbers. Raises ValueError for values out of range.
    """
    if not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"the seed must be in 0 .. 2**63 - 1, got {seed}")
    if not (0 <= chunk < _COUNTER_LIMIT and 0 <= step < _COUNTER_LIMIT):
        raise ValueError(f"chunk and step count from 0, got chunk {chunk} and step {step}")
    # The low counter word counts inside this stream; chunk and step in the high words keep streams apart.
    counter = np.array([0, 0, step, chunk], dtype=np.uint64)
    raw = np.random.Philox(counter=counter, key=np.array([seed, 0], dtype=np.uint64)).random_raw(prod(shape))
    # 52 bits plus a half are exact in float64 and never 0 or 1.
    uniform = ((raw >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return inverse_normal(uniform).astype(np.float32).reshape(tuple(shape))


def inverse_normal(probability: Float64) -> Float64:
    """The standard normal quantile of each probability in (0, 1): float64 [n], relative error about 1e-16."""
    centred = probability - 0.5
    result = centred * _rational(_CENTRE, 0.180625 - centred * centred)
    outside = np.flatnonzero(np.abs(centred) > 0.425)
    result[outside] = _outer_quantile(probability[outside])
    return result


def _outer_quantile(probability: Float64) -> Float64:
    distance = np.sqrt(-_log(np.minimum(probability, 1.0 - probability)))
    size = np.where(distance <= 5.0, _rational(_SHOULDER, distance - 1.6), _rational(_TAIL, distance - 5.0))
    return np.where(probability < 0.5, -size, size)


def _rational(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Float64) -> Float64:
    numerator, denominator = (_polynomial(powers, x) for powers in coefficients)
    return numerator / denominator


def _polynomial(coefficients: Sequence[float], x: Float64) -> Float64:
    total = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        # Two separate operations: a fused multiply-add would round differently on some processors.
        total *= x
        total += coefficient
    return total


def _log(x: Float64) -> Float64:
    """Natural logarithm of positive numbers: a series in (m - 1) / (m + 1) for the mantissa m."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < 0.7071067811865476
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    powers = exponent.astype(np.float64) - low
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    # |ratio| < 0.172, so twelve terms of atanh reach the last bit.
    series = _polynomial([1.0 / (2 * k + 1) for k in range(12)], ratio * ratio)
    return powers * _LN2 + 2.0 * ratio * series
