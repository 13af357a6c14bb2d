"""What a user says of a model: rules, ready ones, rules in files, and what they come to for every layer."""

__all__: list[str] = []
