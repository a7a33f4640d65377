"""The command line (ring 2)."""
