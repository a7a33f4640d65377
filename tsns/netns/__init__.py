"""Linux plumbing: namespaces, TUN, routes, mounts, sockets of the underlay (ring 1)."""
