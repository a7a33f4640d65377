"""TS2021: the Noise IK handshake and its records (ring 0)."""
