"""A decoder-only transformer in plain NNX, converted: perplexity on Python's documentation by density.

The text is that of Python's own ``help("topics")``, which comes with every Python under Python's licence.

python examples/char_transformer.py
"""

from pydoc_data import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dctps_jax import convert


class Block(nnx.Module):
    def __init__(self, features, num_heads, rngs):
        self.norm_attention, self.norm_mlp = nnx.LayerNorm(features, rngs=rngs), nnx.LayerNorm(features, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(num_heads, features, decode=False, rngs=rngs)
        self.expand = nnx.Linear(features, 4 * features, rngs=rngs)
        self.contract = nnx.Linear(4 * features, features, rngs=rngs)

    def __call__(self, x):
        x += self.attention(self.norm_attention(x), is_causal=True)
        return x + self.contract(nnx.gelu(self.expand(self.norm_mlp(x))))


class Decoder(nnx.Module):
    """A transformer that predicts the next character (Vaswani et al. 2017; norms before the blocks)."""

    def __init__(self, vocabulary, length, rngs, features=64, depth=2, num_heads=4):
        self.characters = nnx.Embed(vocabulary, features, rngs=rngs)
        self.places = nnx.Embed(length, features, rngs=rngs)
        self.blocks = nnx.List([Block(features, num_heads, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.head = nnx.Linear(features, vocabulary, rngs=rngs)

    def __call__(self, tokens):
        x = self.characters(tokens) + self.places(jnp.arange(tokens.shape[-1])[None])
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def load_text():
    """Return the characters of the text as numbers, and how many different ones there are."""
    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    characters, tokens = np.unique(list(text), return_inverse=True)
    return tokens.astype(np.int32), len(characters)


def mean_loss(model, windows):
    return optax.softmax_cross_entropy_with_integer_labels(model(windows[:, :-1]), windows[:, 1:]).mean()


def train(model, tokens, num_steps, length, batch_size=16):
    optimizer = nnx.Optimizer(model, optax.adam(optax.cosine_decay_schedule(3e-3, num_steps)), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, windows):
        optimizer.update(model, nnx.grad(mean_loss)(model, windows))

    rng = np.random.default_rng(0)
    for _ in range(num_steps):
        starts = rng.integers(0, len(tokens) - length, batch_size)
        step(model, optimizer, jnp.asarray(tokens[starts[:, None] + np.arange(length + 1)]))


def perplexity(model, tokens, length):
    windows = jnp.asarray(tokens[: len(tokens) // (length + 1) * (length + 1)].reshape(-1, length + 1)[:256])
    return float(jnp.exp(nnx.jit(mean_loss)(model, windows)))


def main(num_steps=300, length=64, densities=(0.1, 0.03, 0.01)):
    tokens, vocabulary = load_text()
    split = int(0.9 * len(tokens))
    variants = {"all weights": (1.0, None)}
    for density in densities:
        variants |= {f"{density:.0%}, {offset or 'no offset'}": (density, offset) for offset in ("dct", None)}
    found = {}
    for name, (density, offset) in variants.items():
        model = Decoder(vocabulary, length, nnx.Rngs(0))
        if density < 1:
            model = convert(model, density=density, method="erk", offset=offset, embeddings=True)
        weights = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        train(model, tokens[:split], num_steps, length)
        found[name] = perplexity(model, tokens[split:], length)
        print(f"{name:15} {weights:9,} parameters  perplexity {found[name]:6.2f}", flush=True)
    return found


if __name__ == "__main__":
    main()
