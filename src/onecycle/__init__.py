"""Reproducible, comparable image classification: DVC stages, One Cycle training, MLflow rows."""

from onecycle.cpu_quota import limit_threads

limit_threads()  # before anything is imported that counts cores
