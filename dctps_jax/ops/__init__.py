"""How a layer is computed. ``README.md`` beside this file describes the methods."""
