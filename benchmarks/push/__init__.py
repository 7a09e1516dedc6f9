"""How soon all proxies of a fleet know what one has learnt: real processes on a real engine."""
