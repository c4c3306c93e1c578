"""What the supervisor raises."""


class RouterError(Exception):
    """Anything that goes wrong while choosing a specialist."""
