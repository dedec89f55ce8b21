"""Which model is used: the gate that decides about a candidate, and the registry that keeps the champion."""
