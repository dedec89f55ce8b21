"""How good a model is: retrieval, the type-token probe, the scores that are kept."""
