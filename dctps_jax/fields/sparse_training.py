"""The fields of weights that move, or are pruned, while training."""

from dctps_jax.field import Allowed, ByStep, Field, Need, at_least
from dctps_jax.fields.values import FROM_0_TO_1, is_density
from dctps_jax.pruning import dynamic

SUPPORT_CHANGES = Need("sparse_training.method", lambda name: name != "static")
WEIGHTS_MOVE = Need("sparse_training.method", lambda name: name in dynamic.MOVING)
GRADUAL_PRUNING = Need("sparse_training.method", lambda name: name == "gmp")

SPARSE_TRAINING: dict[str, Field] = {
    "sparse_training.method": Field(
        "static",
        "`static` keeps the support; `rigl` and `set` move weights while training; `gmp` prunes them gradually by "
        "magnitude, from `initial_density` to `pruning.density`.",
        choices=dynamic.METHODS,
        by_step=ByStep(dynamic.fractions_by_step, "share of the weights to move or prune"),
    ),
    "sparse_training.update_every": Field(
        100, "Steps between two moves or prunings of weights.", allowed=at_least(1), needs=(SUPPORT_CHANGES,)
    ),
    "sparse_training.stop_fraction": Field(
        0.75,
        "Weights move, or are pruned, only in this first part of the training steps.",
        allowed=FROM_0_TO_1,
        needs=(SUPPORT_CHANGES,),
    ),
    "sparse_training.drop_fraction": Field(
        0.3,
        "The part of a layer's trained weights that moves at the start; it falls to 0 by a cosine.",
        allowed=FROM_0_TO_1,
        needs=(WEIGHTS_MOVE,),
    ),
    "sparse_training.begin_fraction": Field(
        0.0,
        "`gmp` starts to prune after this part of the training steps.",
        allowed=FROM_0_TO_1,
        needs=(GRADUAL_PRUNING,),
        added=True,
    ),
    "sparse_training.initial_density": Field(
        1.0,
        "The density that `gmp` starts with, at random positions.",
        allowed=Allowed(is_density, "above 0 and at most 1"),
        needs=(GRADUAL_PRUNING,),
        added=True,
    ),
}
