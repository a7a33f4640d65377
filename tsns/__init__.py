"""tsns: a tailnet for one command or one container, and for nothing else on the machine."""

VERSION = "0.1.0"
