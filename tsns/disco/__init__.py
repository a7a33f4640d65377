"""Disco: the messages by which nodes find paths to one another."""
