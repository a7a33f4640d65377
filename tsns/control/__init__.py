"""The control plane: login and the netmap stream."""
