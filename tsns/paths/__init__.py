"""Paths to peers: STUN, latencies, the home region (ring 0)."""
