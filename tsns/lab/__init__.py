"""A whole tailnet on this machine: control, DERP and STUN servers, for the demo and the tests (ring 1)."""
