"""Networks of tokens, networks that return more than logits, and seeds in place of keys."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dctps_jax import UserError, convert
from dctps_jax.pruning import get_masks, prune
from dctps_jax.pruning.random import random_supports

KEY = jax.random.key(0)
TOKENS = jnp.array([[0, 1, 2], [3, 2, 1]])
LABELS = jnp.array([0, 1])


class OfTokens(nnx.Module):
    def __init__(self, returns_more=False):
        self.embed = nnx.Embed(5, 8, rngs=nnx.Rngs(0))
        self.hidden = nnx.Linear(8, 6, rngs=nnx.Rngs(1))
        self.head = nnx.Linear(6, 2, rngs=nnx.Rngs(2))
        self.returns_more = returns_more

    def __call__(self, tokens):
        logits = self.head(nnx.relu(self.hidden(self.embed(tokens))).mean(1))
        return (logits, {"aux": 0}) if self.returns_more else logits


@pytest.mark.parametrize("method", ["snip", "grasp", "force", "magnitude"])
def test_scores_of_a_network_of_tokens(method):
    model = convert(OfTokens(), density=0.5, method=method, batch=(TOKENS, LABELS))
    assert sum(mask.sum() for mask in get_masks(model).values()) == 30
    assert type(model.embed) is nnx.Embed


def test_synflow_takes_no_tokens():
    with pytest.raises(UserError, match=r"takes int32 and cannot take ones.*use another score") as caught:
        convert(OfTokens(), density=0.5, method="synflow", batch=(TOKENS, LABELS))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["snip", "synflow"])
def test_logits_alone_are_scored(method):
    model = OfTokens(returns_more=True)
    with pytest.raises(UserError, match=r"the network returns a tuple, and the loss .* takes an array of logits"):
        convert(model, density=0.5, method=method, batch=(TOKENS, LABELS))

    class Logits(nnx.Module):
        def __init__(self, network):
            self.network = network

        def __call__(self, x):
            return self.network(x)[0]

    model = convert(model, density=1.0)
    masks = prune(Logits(model), "snip", 0.5, key=KEY, batch=(TOKENS, LABELS))
    assert set(masks) == {"network.hidden", "network.head"}


@pytest.mark.parametrize("seed", [0, 3, np.int64(3)])
def test_a_seed_is_a_key(seed):
    model = convert(OfTokens(), density=1.0)
    for method in ("uniform", "random"):
        by_seed, by_key = (prune(model, method, 0.5, key=key) for key in (seed, jax.random.key(int(seed))))
        assert all((by_seed[path] == by_key[path]).all() for path in by_key)
    thin, other = (convert(OfTokens(), density=0.5, key=key) for key in (seed, jax.random.key(int(seed))))
    assert all((mask == get_masks(other)[path]).all() for path, mask in get_masks(thin).items())


@pytest.mark.parametrize("key", [None, True, 0.5, "a", jax.random.split(KEY, 2), jnp.zeros(2)])
def test_what_is_no_key(key: Any):
    model, other = convert(OfTokens(), density=1.0), cast(Any, "no" if key is None else key)
    for call in (
        lambda: prune(model, "uniform", 0.5, key=cast(Any, key)),
        lambda: prune(model, "random", 0.5, key=cast(Any, key)),
        lambda: convert(OfTokens(), density=0.5, key=other),
    ):
        with pytest.raises(UserError, match=r"key is .*; it must be one key, e\.g\. jax\.random\.key\(0\), or a seed"):
            call()
    raw = random_supports(jax.random.PRNGKey(3), {"a": (8, 8)}, {"a": 9})
    np.testing.assert_array_equal(raw["a"], random_supports(jax.random.key(3), {"a": (8, 8)}, {"a": 9})["a"])


def test_the_magnitude_of_the_sparse_part():
    model = convert(nnx.Linear(8, 8, rngs=nnx.Rngs(0)), density=1.0)
    with pytest.raises(UserError, match=r"only 0 of 64 weights .* as S is before training"):
        prune(model, "magnitude_sparse", 0.5, key=KEY)
    sparse = jax.random.normal(KEY, (8, 8))
    model.kernel.set_value(sparse)
    kept = prune(model, "magnitude_sparse", 0.25, key=KEY)[""]
    np.testing.assert_array_equal(kept, abs(sparse) >= jnp.sort(abs(sparse).ravel())[-16])
    assert (kept != prune(model, "magnitude", 0.25, key=KEY)[""]).any()


class Attention(nnx.Module):
    def __init__(self):
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, dropout_rate=0.5, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(4, 3, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.head(self.attention(x).mean(1))


@pytest.mark.parametrize("method", ["snip", "magnitude"])
def test_a_new_network_with_dropout_is_scored_as_in_evaluation(method):
    batch = jax.random.normal(jax.random.key(0), (6, 5, 4)), jnp.arange(6) % 3
    fresh, told = Attention(), Attention()
    told.eval()
    found, expected = (get_masks(convert(m, density=0.3, method=method, batch=batch)) for m in (fresh, told))
    for path, mask in expected.items():
        np.testing.assert_array_equal(found[path], mask)


@pytest.mark.parametrize("method", ["snip", "magnitude", "synflow"])
def test_a_score_without_weights_is_refused(method):
    batch = jnp.ones((6, 5, 4)), jnp.arange(6) % 3
    with pytest.raises(UserError, match=r"a score needs the weights of the network; .* nnx\.eval_shape"):
        nnx.eval_shape(lambda: convert(Attention(), density=0.3, method=method, batch=batch))
