"""The command line programs. An installation makes them ``dctps-train``, ``dctps-sweep`` and so on."""
