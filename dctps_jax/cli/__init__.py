"""The programs of the command line that use everything else. ``dctps-train`` and the others are these after an installation."""
