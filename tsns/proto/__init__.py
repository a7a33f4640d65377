"""Wire types, addresses and IP packets (ring 0)."""
