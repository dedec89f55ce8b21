"""Which model is used: the gate that judges a candidate, and the registry that keeps the champion."""
