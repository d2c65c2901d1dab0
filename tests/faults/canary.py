"""A module that nothing names. Where it is imported, stored data has chosen what code runs."""


class Canary:
    """Stands for any class that data could name."""
