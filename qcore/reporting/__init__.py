"""What every report needs to be drawn and written."""

__all__: list[str] = []
