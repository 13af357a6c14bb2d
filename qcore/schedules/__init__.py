"""Settings that change in training: schedules, and the clock that they go by."""

__all__: list[str] = []
