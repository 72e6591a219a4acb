"""Reproducible, comparable image classification: DVC stages, One Cycle training, MLflow rows."""
