"""The examples run, and learn what they say they learn."""

from examples import char_transformer, finetune_digits, mixer_digits, optax_only, vit_digits


def test_optax_only():
    assert optax_only.main(num_steps=300)[1] > 0.85


def test_mixer_digits():
    accuracies = mixer_digits.main(num_epochs=4, depth=2)
    assert accuracies["dense"] > 0.8 and accuracies["0.3 % and the DCT offset"] > accuracies["0.3 % alone"]


def test_vit_digits():
    accuracies = vit_digits.main(num_epochs=4, depth=1, seeds=(0,))
    assert accuracies["all weights"] > 0.4 and accuracies["1 %, epl, dct"] > 0.15


def test_char_transformer():
    perplexities = char_transformer.main(num_steps=30, length=16, densities=(0.1,))  # 103 before training
    assert perplexities["all weights"] < 40 and max(perplexities.values()) < 90


def test_finetune_digits():
    accuracies = finetune_digits.main(num_epochs=4, seeds=(0,))
    assert accuracies["all parameters"] > 0.7
    assert accuracies["0.5 %, by Fisher information"] > accuracies["0.5 %, at random"] > 0.2
