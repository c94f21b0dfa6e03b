"""Pruning before training: how many weights of each layer are trained, and which."""

from dctps_jax.pruning.allocation import ALLOCATIONS, allocate, density_asked, trains_all_weights
from dctps_jax.pruning.layer_rules import check_density
from dctps_jax.pruning.masks import (
    FORMS,
    apply_masks,
    check_masks,
    digest_of_masks,
    get_masks,
    load_masks,
    load_run_masks,
    mask_of_support,
    save_masks,
)
from dctps_jax.pruning.methods import check_method, method_names, prune, random_pattern_supports
from dctps_jax.pruning.pattern import contradiction, is_pattern, parse_pattern
from dctps_jax.pruning.random import random_masks, random_supports
from dctps_jax.pruning.scores import SCORES

__all__ = [
    "ALLOCATIONS",
    "FORMS",
    "SCORES",
    "allocate",
    "apply_masks",
    "check_density",
    "check_masks",
    "check_method",
    "contradiction",
    "density_asked",
    "digest_of_masks",
    "get_masks",
    "is_pattern",
    "load_masks",
    "load_run_masks",
    "mask_of_support",
    "method_names",
    "parse_pattern",
    "prune",
    "random_masks",
    "random_pattern_supports",
    "random_supports",
    "save_masks",
    "trains_all_weights",
]
