"""The folders that belong to a user, where the system keeps such things."""

from __future__ import annotations

from pathlib import Path

from platformdirs import user_cache_path, user_data_path


def data_folder() -> Path:
    """Where models and weights that the user installs are kept."""
    return user_data_path("tessera", appauthor=False)


def cache_folder() -> Path:
    """Where results are kept that can be computed again."""
    return user_cache_path("tessera", appauthor=False)
