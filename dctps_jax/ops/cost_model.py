"""Choose the method that computes a compact layer, by the predicted time of each method.

A prediction counts multiply-adds and the numbers that are read and written, and multiplies each count by its measured
cost on the platform (:mod:`dctps_jax.ops.costs`). Each method counts its own work, in its ``cost``. A prediction
depends on shapes and the number of trained weights only, so it is made once, when a program is traced.
"""

from typing import Any

import jax.numpy as jnp

from dctps_jax.errors import UserError
from dctps_jax.ops import target
from dctps_jax.ops.costs import FILES, HALF, Costs, read_costs
from dctps_jax.ops.methods import AUTODIFF, METHODS, possible_methods
from dctps_jax.ops.work import Work

SETTINGS = ("auto", *METHODS)
# The names of the methods in version 0.1.0.
RENAMED = {
    "plain": "autodiff",
    "dense": "on_support",
    "dense_rows": "on_support_rows",
    "factored": "per_weight",
    "factored_rows": "per_weight_rows",
}
# The known costs of each platform, and of half precision on it.
COSTS: dict[str, Costs] = {platform: read_costs(file) for platform, file in FILES.items()}
# "auto" leaves "autodiff" only for a method whose predicted time is at most this part of autodiff's. Predictions of
# small differences are not reliable.
MARGIN = 0.9


def costs_of(platform: str, dtype: Any) -> Costs | None:
    """Return the costs of a platform for inputs of ``dtype``, or None if they are not known."""
    return COSTS.get(platform + (HALF if jnp.dtype(dtype).itemsize < 4 else ""))


def predicted_seconds(work: Work, method: str, dtype: Any, platform: str | None = None) -> float:
    """Return the predicted seconds of a layer's part of a training step, forward and all gradients.

    They are seconds of one core of a CPU, of a GPU, or of a chip of a TPU. ``dtype`` is the type of the inputs.
    ``platform`` is by default the platform of the trace. If its costs in half precision are not known, its float32
    costs are used; if it has none, those of a CPU.
    """
    platform = platform or target.platform()
    costs = costs_of(platform, dtype) or COSTS.get(platform, COSTS["cpu"])
    return 1e-9 * METHODS[method].cost(work, costs)


def choose(setting: str, work: Work, dtype: Any, platform: str | None = None) -> str:
    """Return the name of the method for a layer: the method that ``setting`` names, or for "auto" the predicted best.

    A method that is not possible is replaced by its fallback. The method is "autodiff" for no inputs, for complex ones,
    for a batch whose size is a symbol of :mod:`jax.export`, and in a program for every platform. "auto" keeps
    "autodiff" if there is little to gain, and if the costs of the platform and the precision are not known. It takes a
    method only if that needs no more memory than a layer that trains all weights.

    Raises :class:`~dctps_jax.errors.UserError` for a setting that does not exist.
    """
    if setting in tuple(RENAMED):
        raise UserError(f"the method is {setting!r}; it is now called {RENAMED[setting]!r}, give this name")
    if setting not in SETTINGS:
        raise UserError(f"the method is {setting!r}; it must be one of: {', '.join(SETTINGS)}")
    platform = platform or target.platform()
    has_every_size = all(isinstance(size, int) and size > 0 for size in work.inputs)
    if platform == target.PORTABLE or not has_every_size or jnp.issubdtype(dtype, jnp.complexfloating):
        return AUTODIFF.name
    if setting != "auto":
        method = METHODS[setting]
        return method.name if method.is_possible(work) else method.fallback
    costs = costs_of(platform, dtype)
    if costs is None:
        return AUTODIFF.name
    seconds = {
        name: predicted_seconds(work, name, dtype, platform)
        for name in possible_methods(work)
        if METHODS[name].is_lean(work)
    }
    best = min(seconds, key=lambda name: seconds[name])
    autodiff = seconds[AUTODIFF.name]
    gains_enough = seconds[best] < min(MARGIN * autodiff, autodiff - 1e-9 * costs.least_gain)
    return best if gains_enough else AUTODIFF.name
