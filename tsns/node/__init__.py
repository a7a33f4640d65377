"""One node: its processes, its sockets, its readiness (ring 1)."""
