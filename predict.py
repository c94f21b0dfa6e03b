"""Classify image files with an exported network: ``python predict.py model.safetensors IMAGE [IMAGE …]``."""

from dctps_jax.cli.predict import main

if __name__ == "__main__":
    main()
