"""The fields that say how a network is computed. They change results by rounding only."""

from dctps_jax import pruning
from dctps_jax.field import Allowed, Field, at_least
from dctps_jax.fields.values import are_pairs
from dctps_jax.ops import cost_model

EXECUTION: dict[str, Field] = {
    "execution.form": Field(
        "auto",
        "How weights are stored. `masked`: all, with a mask. `compact`: trained ones only. `auto`: compact up to 40 % "
        "of the weights, masked above and with `gmp`.",
        choices=("auto", *pruning.FORMS),
        resume=True,
    ),
    "execution.method": Field(
        "auto",
        "How compact layers are computed; `auto`: by predicted time.",
        choices=cost_model.SETTINGS,
        renamed=cost_model.RENAMED,
        resume=True,
    ),
    "execution.layer_methods": Field(
        (),
        "The methods of single compact layers.",
        allowed=Allowed(
            lambda pairs: are_pairs(pairs, lambda method: method in (*cost_model.SETTINGS, *cost_model.RENAMED)),
            f"(pattern, method) pairs with a method of: {', '.join(cost_model.SETTINGS)}, "
            "e.g. (('layer1.*', 'on_support'),)",
        ),
        resume=True,
    ),
    "execution.explain": Field(
        False, "Print the method of each layer and the predicted times of all methods.", resume=True
    ),
    "execution.min_loop": Field(
        64,
        "At least this many equal blocks in a row become one loop, which is compiled once.",
        allowed=at_least(2, zero="for no loops"),
        resume=True,
    ),
    "execution.remat": Field(
        False, "Compute the inside of each block again for the gradient: less memory, more time.", resume=True
    ),
    "execution.keep_compiled": Field(
        True,
        "Keep compiled programs in `~/.cache/dctps_jax/compiled`, for later starts.",
        resume=True,
        added=True,
    ),
    "execution.keep_memory": Field(
        True,
        "On a CPU with glibc: keep freed memory, ask for huge pages, compute in the calling thread. Faster.",
        resume=True,
    ),
}
