"""The stages of `dvc.yaml`, step by step: each reads and writes files of the project, logs to MLflow, and returns.

Every function here is one command `clip4vla STEP [NAME]`. None of them imports Prefect, and none is called by a part of
the package other than `__main__`.
"""
