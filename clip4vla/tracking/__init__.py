"""Experiment tracking in MLflow: runs, the store that keeps them, and what code, data and machine they came from."""
