"""MagicDNS."""
