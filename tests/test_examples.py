"""The examples run, and learn what they say they learn."""

from examples import mixer_digits, optax_only


def test_optax_only():
    assert optax_only.main(num_steps=300)[1] > 0.85


def test_mixer_digits():
    accuracies = mixer_digits.main(num_epochs=4, depth=2)
    assert accuracies["dense"] > 0.8 and accuracies["0.3 % and the DCT offset"] > accuracies["0.3 % alone"]
