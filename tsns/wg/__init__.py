"""WireGuard: handshakes, sessions, peers, and the pump between TUN and network."""
