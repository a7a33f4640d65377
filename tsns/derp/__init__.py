"""DERP: packets by relay."""
