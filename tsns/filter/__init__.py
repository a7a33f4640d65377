"""The packet filter (ring 0)."""
