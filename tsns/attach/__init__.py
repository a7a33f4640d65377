"""How something gets into a node's namespace (ring 2)."""
