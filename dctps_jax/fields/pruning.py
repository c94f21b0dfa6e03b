"""The fields that say which weights are trained."""

from dctps_jax import pruning
from dctps_jax.field import Allowed, Field, Need, at_least
from dctps_jax.fields.values import are_pairs, are_texts, is_density
from dctps_jax.losses import LOSSES
from dctps_jax.pruning import by_score, schedules

OWN_DENSITY = Need("pruning.method", lambda name: name != "from_run")
MASKS_OF_RUN = Need("pruning.method", lambda name: name == "from_run")
REWINDS = Need("pruning.rewind_epoch", lambda epoch: epoch >= 0)
SCORE_IN_USE = Need("pruning.method", lambda name: name not in (*pruning.ALLOCATIONS, "from_run"))

PRUNING: dict[str, Field] = {
    "pruning.method": Field(
        "epl",
        "How the trained weights are chosen. At random positions: equally many in each layer (`epl`) or filter "
        "(`epf`), by the Erdős–Rényi kernel (`erk`), or with one density (`uniform`). `from_run`: the masks of the run "
        "in `pruning.run`, for any `density`, or fewer of its weights (`rewind_epoch`). The others are scores.",
        choices=(*pruning.method_names(), "from_run"),
    ),
    "pruning.density": Field(
        0.01,
        "Trained weights ÷ all weights of the prunable kernels; 1.0 trains the dense network.",
        allowed=Allowed(is_density, "above 0 and at most 1, e.g. 0.01 to train 1 % of the weights"),
        needs=(OWN_DENSITY, REWINDS),
    ),
    "pruning.pattern": Field(
        "",
        "N:M, e.g. `2:4`: of every M inputs in a row, each output keeps N weights. `pruning.density` must be N/M, "
        "`pruning.method` `uniform` or a score. Layers of `dense_layers` and `layer_densities` have no pattern, and "
        "their weights come on top of the density.",
        allowed=Allowed(lambda text: text == "" or pruning.is_pattern(text), "'N:M' with 0 < N < M, e.g. '2:4', or ''"),
        needs=(OWN_DENSITY, REWINDS),
        added=True,
    ),
    "pruning.num_steps": Field(
        0,
        "Steps of a score; 1: one shot, 0: the method's own number.",
        allowed=at_least(1, zero="for the method's own number"),
        needs=(SCORE_IN_USE,),
    ),
    "pruning.schedule": Field(
        "exp", "How the density falls over the steps of a score.", choices=schedules.SCHEDULES, needs=(SCORE_IN_USE,)
    ),
    "pruning.num_batches": Field(
        1,
        "Batches over which a score averages its gradients in each step.",
        allowed=at_least(1),
        needs=(SCORE_IN_USE,),
    ),
    "pruning.scope": Field(
        "global",
        "`global`: the highest scores of the whole network stay. `layer`: the highest of each layer, at one density.",
        choices=by_score.SCOPES,
        needs=(SCORE_IN_USE, REWINDS),
    ),
    "pruning.allocation": Field(
        "",
        'This allocation sets how many weights each layer keeps, a score which ones; "": a score sets both.',
        choices=("", *pruning.ALLOCATIONS),
        needs=(SCORE_IN_USE, REWINDS),
    ),
    "pruning.loss": Field(
        "cross_entropy",
        "The loss of a score; `nll_logits`: as in the original code.",
        choices=LOSSES,
        needs=(SCORE_IN_USE,),
    ),
    "pruning.run": Field(
        "",
        "Directory of the run whose masks `from_run` takes.",
        needs=(MASKS_OF_RUN,),
    ),
    "pruning.rewind_epoch": Field(
        -1,
        "At least 0: `from_run` prunes the trained weights of that run by magnitude, to `pruning.density`, and trains "
        "on from that run's weights after this many epochs (0: its initial weights). That run must have kept the epoch "
        "(`keep_epochs`). -1: take the masks only.",
        allowed=at_least(-1),
        needs=(MASKS_OF_RUN,),
        added=True,
    ),
    "pruning.dense_layers": Field(
        (),
        "Path patterns of layers that keep all their weights. The density of the whole network stays as asked.",
        allowed=Allowed(are_texts, "path patterns, e.g. ('fcs.*',)"),
        needs=(OWN_DENSITY, REWINDS),
    ),
    "pruning.layer_densities": Field(
        (),
        "Densities of single layers. The density of the whole network stays as asked.",
        allowed=Allowed(
            lambda pairs: are_pairs(pairs, is_density),
            "(pattern, density) pairs with densities above 0 and at most 1, e.g. (('fc', 0.5),)",
        ),
        needs=(OWN_DENSITY, REWINDS),
    ),
}
