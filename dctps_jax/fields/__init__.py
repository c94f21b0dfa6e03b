"""The fields of a config, each declared once: a module for each section, from dotted name to declaration."""
