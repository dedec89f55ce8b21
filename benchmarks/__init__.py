"""Speed and memory: each module is one command that prints one JSON line; `results/` keeps dated figures."""
